"""A benchmark worker that measures the machine's peak speeds with PyTorch.

Usage: `python -m resdeploy.train.bench.torch_ceilings THREADS`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from resdeploy.benchmark_process.ceilings import (
    COPY,
    COPY_BYTES,
    SHAPES,
    Probe,
    fastest_probe,
    probe_timer,
)
from resdeploy.benchmark_process.worker_loop import run_worker
from resdeploy.errors import needs_extra
from resdeploy.machine.cpu import read_cpu

logger = logging.getLogger(__name__)

Shape = tuple[int, int, int]
"""Rows, depth and columns of a matrix product."""
# Large enough to load every GPU, and small enough (800 MB in FP32) for the smallest memory.
GPU_SHAPE = (8192, 8192, 8192)
GPU_COPY_BYTES = 512 << 20


def prepare_probes(threads: int) -> tuple[Callable[[], object], dict[str, Any]]:
    """Return a function that times matrix products and a copy, on a GPU if there is one.

    Raises:
        MissingDependencyError: PyTorch is not installed.
    """
    with needs_extra():
        import torch

    torch.set_num_threads(threads)
    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    shapes, copy_bytes = ([GPU_SHAPE], GPU_COPY_BYTES) if on_gpu else (SHAPES, COPY_BYTES)
    precisions = ["fp32", "tf32", "fp16", "bf16", "int8"] if on_gpu else ["fp32", "int8"]
    if not on_gpu and read_cpu().has_fast_bf16:
        precisions.append("bf16")
    probes = [copy_probe(device, copy_bytes)]
    for precision in precisions:
        try:
            products = [product_probe(precision, device, shape) for shape in shapes]
            probes.append(fastest_probe(products))
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            logger.debug("%s products are not available: %s", precision, error)
    return probe_timer(probes), {"device": device}


def product_probe(precision: str, device: str, shape: Shape) -> Probe:
    """Return a probe of matrix products; the matrices are random, as a GPU multiplies zeros faster.

    Raises:
        RuntimeError, AttributeError, NotImplementedError: The precision is not supported.
    """
    import torch

    rows, depth, columns = shape
    generator = torch.Generator(device).manual_seed(0)
    on_gpu = device == "cuda"
    # INT8 tensor cores need a transposed second matrix; CPU kernels would have to transpose it
    # back first.
    sizes = ((rows, depth), (columns, depth) if on_gpu else (depth, columns))
    if precision == "int8":
        left, right = (
            torch.randint(-127, 128, size, dtype=torch.int8, generator=generator, device=device)
            for size in sizes
        )
        result = None
    else:
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
        left, right = (
            torch.randn(size, generator=generator, device=device).to(dtype) for size in sizes
        )
        result = torch.empty((rows, columns), dtype=dtype, device=device)
    second = right.t() if on_gpu else right

    def multiply() -> object:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        if result is None:
            return torch.ops.aten._int_mm(left, second)  # PyTorch has no other INT8 product
        return torch.matmul(left, second, out=result)

    return _probe(precision, 2 * rows * depth * columns, multiply, device)


def copy_probe(device: str, size: int) -> Probe:
    """Return a probe that copies `size` bytes within the device's memory."""
    import torch

    source, target = (
        torch.full((size,), number, dtype=torch.uint8, device=device) for number in (1, 2)
    )
    return _probe(COPY, 2 * size, lambda: target.copy_(source), device)


def _probe(kind: str, amount: int, operation: Callable[[], object], device: str) -> Probe:
    import torch

    # On a GPU, several calls are timed together, so that the synchronisation is negligible.
    calls = 5 if device == "cuda" else 1

    def run() -> None:
        for _ in range(calls):
            operation()
        if device == "cuda":
            torch.cuda.synchronize()

    return Probe(kind=kind, amount=amount * calls, run=run)


if __name__ == "__main__":
    (threads,) = sys.argv[1:]
    run_worker(lambda: prepare_probes(int(threads)))
