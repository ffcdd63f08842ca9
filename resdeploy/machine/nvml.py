"""What NVIDIA's driver tells of discrete GPUs.

Source: NVIDIA, "NVML API Reference". Boards with an integrated GPU answer that nearly all of it is
not supported, so what is not told is None, one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, now."""

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
    """What holds its clock down now, besides having nothing to do."""


# nvmlClocksEventReasons: bits that mean less speed than was asked for.
REASONS = {
    0x04: "power limit",
    0x08: "hardware slowdown",
    0x20: "temperature",
    0x40: "temperature (hardware)",
    0x80: "power brake",
}
GRAPHICS_CLOCK = 0
TEMPERATURE_GPU = 0


def read_gpus(nvml: Any) -> tuple[Gpu, ...]:
    """Every GPU that the driver shows; none without a driver."""
    if nvml is None:
        return ()
    count = query(nvml, nvml.nvmlDeviceGetCount) or 0
    return tuple(_describe(nvml, nvml.nvmlDeviceGetHandleByIndex(index)) for index in range(count))


def query(nvml: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """The answer; None where the driver does not know."""
    try:
        return function(*arguments)
    except nvml.NVMLError:
        return None


def _describe(nvml: Any, handle: Any) -> Gpu:
    capability = query(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle)
    memory = query(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    power = query(nvml, nvml.nvmlDeviceGetPowerUsage, handle)
    limit = query(nvml, nvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    reasons = query(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle) or 0
    return Gpu(
        name=_text(query(nvml, nvml.nvmlDeviceGetName, handle)) or "unknown",
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
        memory_bytes=int(memory.total) if memory else None,
        driver=_text(query(nvml, nvml.nvmlSystemGetDriverVersion)),
        temperature_c=query(nvml, nvml.nvmlDeviceGetTemperature, handle, TEMPERATURE_GPU),
        power_w=None if power is None else power / 1000,
        power_limit_w=None if limit is None else limit / 1000,
        clock_mhz=query(nvml, nvml.nvmlDeviceGetClockInfo, handle, GRAPHICS_CLOCK),
        max_clock_mhz=query(nvml, nvml.nvmlDeviceGetMaxClockInfo, handle, GRAPHICS_CLOCK),
        throttled_by=tuple(name for bit, name in REASONS.items() if reasons & bit),
    )


def process_memory(nvml: Any, pid: int) -> int | None:
    """Bytes of all GPUs that a process holds now; None where the driver does not say.

    In a container it often does not: there it knows processes by other numbers.
    """
    if nvml is None:
        return None
    held = [
        process.usedGpuMemory
        for index in range(query(nvml, nvml.nvmlDeviceGetCount) or 0)
        for process in query(
            nvml,
            nvml.nvmlDeviceGetComputeRunningProcesses,
            nvml.nvmlDeviceGetHandleByIndex(index),
        )
        or ()
        if process.pid == pid and process.usedGpuMemory is not None
    ]
    return sum(held) if held else None


def _text(answer: Any) -> str | None:
    return answer.decode(errors="replace") if isinstance(answer, bytes) else answer
