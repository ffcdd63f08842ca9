"""The worker that measures the ceilings of a GPU: `python -m benchmarks.gpu.gpu_ceilings`.

It is a separate process, so that its memory is free again before contenders are timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.gpu.pytorch_worker import check_pytorch
from resdeploy.benchmark_process.ceilings import COPY, Probe
from resdeploy.benchmark_process.worker_loop import run_worker
from resdeploy.train.bench.torch_ceilings import (
    GPU_COPY_BYTES,
    GPU_SHAPE,
    copy_probe,
    product_probe,
)

MIN_SAMPLES = 3


def measure_gpu_ceilings(
    device: str = "cuda",
    *,
    matrix: int = GPU_SHAPE[0],
    copy_bytes: int = GPU_COPY_BYTES,
    seconds: float = 2.0,
) -> dict[str, Any]:
    """Measure each ceiling as the fastest of many samples; list the products that cannot run.

    Matrices have `matrix` rows and columns. The clocks of a GPU need some tenths of a second to
    rise, so each measurement takes at least `seconds`.
    """
    check_pytorch(device)
    probes: dict[str, Callable[[], Probe]] = {
        kind: partial(product_probe, kind, device, (matrix, matrix, matrix))
        for kind in ("fp32", "tf32", "fp16", "bf16", "int8")
    }
    probes[COPY] = partial(copy_probe, device, copy_bytes)
    fastest: dict[str, float] = {}
    missing: list[dict[str, str]] = []
    for kind, make in probes.items():
        try:
            probe = make()
            fastest[kind] = probe.amount / fastest_run(probe, seconds)
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            missing.append({"what": f"ceiling of {kind}", "why": reason})
    return {
        "bytes_per_second": fastest.pop(COPY, None),
        "operations_per_second": fastest,
        "matrix": matrix,
        "copy_bytes": copy_bytes,
        "missing": missing,
    }


def fastest_run(probe: Probe, seconds: float) -> float:
    """Return the time of the fastest call within `seconds`, after one call to warm up."""
    probe.run()
    samples: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(samples) < MIN_SAMPLES or time.perf_counter() < deadline:
        samples.append(probe.seconds())
    return min(samples)


if __name__ == "__main__":
    run_worker(lambda: (lambda: None, measure_gpu_ceilings()))
