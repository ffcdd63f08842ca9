"""Facts about discrete NVIDIA GPUs, read with NVML through pynvml (nvidia-ml-py).

Source: NVIDIA, "NVML API Reference". Integrated GPUs and older drivers support only some of the
queries; the result of an unsupported one is None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU and its state at one moment; None means unknown."""

    name: str
    compute_capability: str | None = None
    memory_bytes: int | None = None
    driver: str | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    clock_mhz: int | None = None
    max_clock_mhz: int | None = None
    throttled_by: tuple[str, ...] = ()
    """Reasons why the clock is reduced at this moment, other than an idle GPU."""


# Names of pynvml's constants for the reasons that make a GPU slower than its load requires.
THROTTLE_REASONS = {
    "nvmlClocksEventReasonSwPowerCap": "power limit",
    "nvmlClocksEventReasonHwSlowdown": "hardware slowdown",
    "nvmlClocksEventReasonSwThermalSlowdown": "temperature",
    "nvmlClocksEventReasonHwThermalSlowdown": "temperature (hardware)",
    "nvmlClocksEventReasonHwPowerBrakeSlowdown": "power brake",
}


def read_gpus(nvml: Any) -> tuple[Gpu, ...]:
    """Describe every GPU that pynvml shows; `nvml` is None without a driver."""
    if nvml is None:
        return ()
    return tuple(_describe(nvml, handle) for handle in _handles(nvml))


def query(nvml: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a function of pynvml; None if the driver does not support it."""
    try:
        return function(*arguments)
    except nvml.NVMLError:
        return None


def _handles(nvml: Any) -> list[Any]:
    count = query(nvml, nvml.nvmlDeviceGetCount) or 0
    return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]


def _describe(nvml: Any, handle: Any) -> Gpu:
    capability = query(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle)
    memory = query(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    power = query(nvml, nvml.nvmlDeviceGetPowerUsage, handle)
    limit = query(nvml, nvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    reasons = query(nvml, nvml.nvmlDeviceGetCurrentClocksEventReasons, handle) or 0
    clock = nvml.NVML_CLOCK_GRAPHICS
    return Gpu(
        name=query(nvml, nvml.nvmlDeviceGetName, handle) or "unknown",
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
        memory_bytes=int(memory.total) if memory else None,
        driver=query(nvml, nvml.nvmlSystemGetDriverVersion),
        # Its successor, nvmlDeviceGetTemperatureV, needs nvidia-ml-py 12.575 and a new driver.
        temperature_c=query(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        power_w=None if power is None else power / 1000,
        power_limit_w=None if limit is None else limit / 1000,
        clock_mhz=query(nvml, nvml.nvmlDeviceGetClockInfo, handle, clock),
        max_clock_mhz=query(nvml, nvml.nvmlDeviceGetMaxClockInfo, handle, clock),
        throttled_by=tuple(
            text for name, text in THROTTLE_REASONS.items() if reasons & getattr(nvml, name)
        ),
    )


def process_memory(nvml: Any, pid: int) -> int | None:
    """Return the bytes of GPU memory that a process uses now; None if the driver does not know.

    In a container it often does not know, because a process has another id there than on the host.
    """
    if nvml is None:
        return None
    held = [
        process.usedGpuMemory
        for handle in _handles(nvml)
        for process in query(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle) or ()
        if process.pid == pid and process.usedGpuMemory is not None
    ]
    return sum(held) if held else None
