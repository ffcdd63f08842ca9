"""The worker that measures the ceilings of a GPU: `python -m benchmarks.gpu.ceilings`.

It is a separate process, so that its memory is free again before contenders are timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from resdeploy.bench.ceilings import COPY, Probe
from resdeploy.bench.roofline import Ceilings
from resdeploy.bench.worker import run_worker
from resdeploy.errors import BackendError, needs_extra
from resdeploy.train.bench.ceilings import GPU_COPY_BYTES, GPU_SHAPE, copy_probe, product_probe

SECONDS = 2.0
"""The time for each measurement; the clocks rise from idle within the first tenths of a second."""
MIN_SAMPLES = 3
KINDS = ("fp32", "tf32", "fp16", "bf16", "int8")


def measure_gpu_ceilings(
    device: str = "cuda",
    *,
    matrix: int = GPU_SHAPE[0],
    copy_bytes: int = GPU_COPY_BYTES,
    seconds: float = SECONDS,
) -> dict[str, Any]:
    """Measure each ceiling as the fastest of many samples; report those that cannot run.

    Args:
        device: The name of the device in PyTorch.
        matrix: Rows and columns of the matrices.
        copy_bytes: Bytes of the copy, which are read once and written once.
        seconds: The time for each measurement.

    Raises:
        BackendError: PyTorch sees no GPU.
        MissingDependencyError: PyTorch is not installed.
    """
    with needs_extra():
        import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise BackendError("PyTorch sees no GPU", "install a build of PyTorch for CUDA")
    shape = (matrix, matrix, matrix)
    kinds: dict[str, Callable[[], Probe]] = {
        **{kind: partial(product_probe, kind, device, shape) for kind in KINDS},
        COPY: partial(copy_probe, device, copy_bytes),
    }
    fastest: dict[str, float] = {}
    missing: list[dict[str, str]] = []
    for kind, make in kinds.items():
        try:
            probe = make()
            fastest[kind] = probe.amount / fastest_run(probe, seconds)
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            missing.append({"what": f"ceiling of {kind}", "why": reason})
    copied = fastest.pop(COPY, None)
    return {
        "operations_per_second": fastest,
        "bytes_per_second": copied,
        "matrix": matrix,
        "copy_bytes": copy_bytes,
        "missing": missing,
    }


def fastest_run(probe: Probe, seconds: float) -> float:
    """Return the time of the fastest call within `seconds`."""
    probe.run()
    samples: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(samples) < MIN_SAMPLES or time.perf_counter() < deadline:
        samples.append(probe.seconds())
    return min(samples)


def parse_ceilings(measured: dict[str, Any]) -> Ceilings:
    """Convert the result of `measure_gpu_ceilings`."""
    return Ceilings(
        operations_per_second=measured["operations_per_second"],
        bytes_per_second=measured["bytes_per_second"],
    )


def prepare() -> tuple[Callable[[], object], dict[str, Any]]:
    """Measure the ceilings and return them as facts, with a function that does nothing."""
    return lambda: None, measure_gpu_ceilings()


if __name__ == "__main__":
    run_worker(prepare)
