"""Stands for `pynvml`, where there is no driver."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class FakeNvml:
    """One GPU that answers as an H100 would, or to whom nothing is supported, as an Orin's."""

    class NVMLError(Exception):
        pass

    def __init__(
        self, *, reasons: int = 0, unsupported: bool = False, counts_energy: bool = True
    ) -> None:
        self.reasons = reasons
        self.unsupported = unsupported
        self.counts_energy = counts_energy
        self.millijoules = 1000
        self.asked_for: Any = None

    def _answer(self, value: Any) -> Any:
        if self.unsupported:
            raise self.NVMLError("not supported")
        return value

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index:
            raise self.NVMLError("no such GPU")
        self.asked_for = index
        return "gpu"

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:
        self.asked_for = name
        return "gpu"

    def nvmlDeviceGetName(self, handle: str) -> Any:
        return self._answer(b"NVIDIA H100")

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

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> Any:
        return self._answer(self.reasons)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> Any:
        if not self.counts_energy:
            raise self.NVMLError("not supported")
        self.millijoules += 500
        return self._answer(self.millijoules)
