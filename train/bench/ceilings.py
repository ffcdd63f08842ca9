"""A machine's ceilings by PyTorch's products: `python -m resdeploy.train.bench.ceilings THREADS`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from resdeploy.bench.ceilings import COPY, COPY_BYTES, SHAPES, Probe, fastest_probe, probe_timer
from resdeploy.bench.worker import run_worker
from resdeploy.errors import needs_extra
from resdeploy.machine.cpu import read_cpu

logger = logging.getLogger(__name__)

Shape = tuple[int, int, int]
"""Rows, depth, columns."""
# Large enough to fill every GPU, small enough for the memory of the smallest (800 MB in FP32).
GPU_SHAPE = (8192, 8192, 8192)
GPU_COPY_BYTES = 512 << 20
TOGETHER = 5  # products in a row on a GPU: the wait for the last one is then small beside them


def prepare(threads: int) -> tuple[Callable[[], object], dict[str, Any]]:
    """Products on the GPU where PyTorch sees one, otherwise on the CPU, and a copy.

    Raises:
        MissingDependencyError: PyTorch is not installed.
    """
    with needs_extra():
        import torch

    torch.set_num_threads(threads)
    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    shapes, copy_bytes = ([GPU_SHAPE], GPU_COPY_BYTES) if on_gpu else (SHAPES, COPY_BYTES)
    kinds = ["fp32", "tf32", "fp16", "bf16", "int8"] if on_gpu else ["fp32", "int8"]
    if not on_gpu and read_cpu().has_fast_bf16:
        kinds.append("bf16")
    chosen = [copy_probe(device, copy_bytes)]
    for kind in kinds:
        try:
            chosen.append(fastest_probe([product_probe(kind, device, shape) for shape in shapes]))
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            logger.debug("no product in %s: %s", kind, error)
    return probe_timer(chosen), {"device": device}


def product_probe(kind: str, device: str, shape: Shape) -> Probe:
    """A product of random matrices; a GPU multiplies zeros at a lower power, and therefore faster.

    Raises:
        RuntimeError, AttributeError, NotImplementedError: the device or this PyTorch has none.
    """
    import torch

    rows, depth, columns = shape
    generator = torch.Generator(device).manual_seed(0)
    on_gpu = device == "cuda"
    # Integer tensor cores read only what lies in a row of memory on both sides; a CPU's kernels
    # would have to turn the second matrix first.
    sizes = ((rows, depth), (columns, depth) if on_gpu else (depth, columns))
    if kind == "int8":
        left, right = (
            torch.randint(-127, 128, size, dtype=torch.int8, generator=generator, device=device)
            for size in sizes
        )
        result = None
    else:
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(kind, torch.float32)
        left, right = (
            torch.randn(size, generator=generator, device=device).to(dtype) for size in sizes
        )
        result = torch.empty((rows, columns), dtype=dtype, device=device)
    second = right.t() if on_gpu else right

    def multiply() -> object:
        if result is None:
            return torch.ops.aten._int_mm(left, second)  # the only one there is
        return torch.matmul(left, second, out=result)

    def run() -> None:
        torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
        for _ in range(_together(device)):
            multiply()
        _wait(device)

    return Probe(kind=kind, amount=2 * rows * depth * columns * _together(device), run=run)


def copy_probe(device: str, size: int) -> Probe:
    """A copy of `size` bytes within the device's memory: read once and written once."""
    import torch

    source, target = (
        torch.full((size,), number, dtype=torch.uint8, device=device) for number in (1, 2)
    )

    def run() -> None:
        for _ in range(_together(device)):
            target.copy_(source)
        _wait(device)

    return Probe(kind=COPY, amount=2 * size * _together(device), run=run)


def _together(device: str) -> int:
    return TOGETHER if device == "cuda" else 1


def _wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    (threads,) = sys.argv[1:]
    run_worker(lambda: prepare(int(threads)))
