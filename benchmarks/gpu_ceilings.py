"""What this GPU can do at most, by large products and a copy: `python -m benchmarks.gpu_ceilings`.

A process of its own: what it allocates is gone before anything is timed against it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.roofline import Ceilings
from resdeploy.contender import answer
from resdeploy.errors import BackendError, needs_extra

# Large enough to fill every GPU, small enough for the memory of the smallest (800 MB in FP32).
MATRIX = 8192
# Far more than any level-2 cache holds, so that the copy goes through the memory.
COPY_BYTES = 512 << 20
SECONDS = 2.0  # for each: clocks rise from idle within the first tenths
TOGETHER = 5  # products in a row: the wait for the last one is then small beside them
LEAST_SAMPLES = 3


def measure(
    device: str = "cuda",
    *,
    matrix: int = MATRIX,
    copy_bytes: int = COPY_BYTES,
    seconds: float = SECONDS,
) -> dict[str, Any]:
    """The fastest of many samples of each; what cannot run is told with its reason.

    Args:
        device: PyTorch's name of it.
        matrix: Rows and columns of the matrices.
        copy_bytes: Size of what is copied; it is read once and written once.
        seconds: Time for each measurement.

    Raises:
        BackendError: PyTorch sees no such device.
        MissingDependencyError: PyTorch is not installed.
    """
    with needs_extra():
        import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise BackendError("PyTorch sees no GPU", "install a build of PyTorch for CUDA")

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    generator = torch.Generator(device).manual_seed(0)

    def numbers(dtype: torch.dtype) -> torch.Tensor:
        # Random ones: a GPU multiplies zeros at a lower power, and therefore faster.
        shape = (matrix, matrix)
        if dtype is torch.int8:
            return torch.randint(-127, 128, shape, dtype=dtype, generator=generator, device=device)
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    def product(dtype: torch.dtype, fp32_as: str = "highest") -> Callable[[], object]:
        torch.set_float32_matmul_precision(fp32_as)
        # Both rows and columns lie in a row of memory: integer tensor cores read nothing else.
        left, right = numbers(dtype), numbers(dtype).t()
        if dtype is torch.int8:
            return lambda: torch.ops.aten._int_mm(left, right)  # the only one there is
        result = torch.empty((matrix, matrix), dtype=dtype, device=device)
        return lambda: torch.matmul(left, right, out=result)

    def copy() -> Callable[[], object]:
        source, target = (
            torch.empty(copy_bytes, dtype=torch.uint8, device=device).fill_(number)
            for number in (1, 2)
        )
        return lambda: target.copy_(source)

    kinds: dict[str, Callable[[], Callable[[], object]]] = {
        "fp32": lambda: product(torch.float32),
        "tf32": lambda: product(torch.float32, "high"),
        "fp16": lambda: product(torch.float16),
        "bf16": lambda: product(torch.bfloat16),
        "int8": lambda: product(torch.int8),
        "copy": copy,
    }
    fastest: dict[str, float] = {}
    missing: list[dict[str, str]] = []
    for kind, prepare_run in kinds.items():
        try:
            fastest[kind] = fastest_run(prepare_run(), wait, seconds)
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            missing.append({"what": f"ceiling of {kind}", "why": why})
    copied = fastest.pop("copy", None)
    return {
        "operations_per_second": {
            kind: 2 * matrix**3 / duration for kind, duration in fastest.items()
        },
        "bytes_per_second": None if copied is None else 2 * copy_bytes / copied,
        "matrix": matrix,
        "copy_bytes": copy_bytes,
        "missing": missing,
    }


def fastest_run(run: Callable[[], object], wait: Callable[[], None], seconds: float) -> float:
    """Seconds of one run, in the best of all samples of `TOGETHER` runs."""
    run()
    wait()
    samples: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(samples) < LEAST_SAMPLES or time.perf_counter() < deadline:
        start = time.perf_counter()
        for _ in range(TOGETHER):
            run()
        wait()
        samples.append((time.perf_counter() - start) / TOGETHER)
    return min(samples)


def ceilings_of(measured: dict[str, Any]) -> Ceilings:
    """What `measure` gives, for `roofline`."""
    return Ceilings(
        operations_per_second=measured["operations_per_second"],
        bytes_per_second=measured["bytes_per_second"],
    )


def prepare() -> tuple[Callable[[], object], dict[str, Any]]:
    """All is measured before the process says that it is ready: then nothing is left to run."""
    return lambda: None, measure()


if __name__ == "__main__":
    answer(prepare)
