"""A fake of `pynvml`, for machines without a driver."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class FakeNvml:
    """A driver with one GPU: an H100 or, if `unsupported`, one that supports no query, as Orin's.

    A test compares these names with those of pynvml.
    """

    NVML_CLOCK_GRAPHICS = 0
    NVML_TEMPERATURE_GPU = 0
    nvmlClocksEventReasonSwPowerCap = 0x04
    nvmlClocksEventReasonHwSlowdown = 0x08
    nvmlClocksEventReasonSwThermalSlowdown = 0x20
    nvmlClocksEventReasonHwThermalSlowdown = 0x40
    nvmlClocksEventReasonHwPowerBrakeSlowdown = 0x80

    class NVMLError(Exception):
        pass

    def __init__(
        self, *, reasons: int = 0, unsupported: bool = False, counts_energy: bool = True
    ) -> None:
        self.reasons = reasons
        self.unsupported = unsupported
        self.counts_energy = counts_energy
        self.millijoules = 1000
        self.opened: Any = None

    def _answer(self, value: Any) -> Any:
        if self.unsupported:
            raise self.NVMLError("not supported")
        return value

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index:
            raise self.NVMLError("no such GPU")
        self.opened = index
        return "gpu"

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:
        self.opened = name
        return "gpu"

    def nvmlDeviceGetName(self, handle: str) -> Any:
        return self._answer("NVIDIA H100")

    def nvmlDeviceGetCudaComputeCapability(self, handle: str) -> Any:
        return self._answer((9, 0))

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return self._answer(SimpleNamespace(total=80 << 30))

    def nvmlSystemGetDriverVersion(self) -> Any:
        return self._answer("580.1")

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> Any:
        return self._answer(40)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> Any:
        return self._answer(350_000)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> Any:
        return self._answer(700_000)

    def nvmlDeviceGetClockInfo(self, handle: str, clock: int) -> Any:
        return self._answer(1980)

    def nvmlDeviceGetMaxClockInfo(self, handle: str, clock: int) -> Any:
        return self._answer(1980)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> Any:
        return self._answer(self.reasons)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> Any:
        if not self.counts_energy:
            raise self.NVMLError("not supported")
        self.millijoules += 500
        return self._answer(self.millijoules)
