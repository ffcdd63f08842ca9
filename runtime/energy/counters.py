"""Energy counters of discrete GPUs (NVML) and of x86 CPUs (RAPL).

Sources: NVIDIA, "NVML API Reference" (`nvmlDeviceGetTotalEnergyConsumption`,
`nvmlDeviceGetPowerUsage`); Linux, "Power Capping Framework" (`energy_uj`, `max_energy_range_uj`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from resdeploy.machine.device import Scope
from resdeploy.machine.host import Host
from resdeploy.machine.nvml import query
from resdeploy.runtime.energy.source import PowerSource, Reading, read_sum

PACKAGES = "sys/class/powercap/intel-rapl:[0-9]*"


def find_nvml(nvml: Any, environment: Mapping[str, str] = os.environ) -> PowerSource | None:
    """Return the source of the first GPU that CUDA sees; None without a driver or a sensor."""
    if nvml is None:
        return None
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if visible and not visible.isdigit():
        handle = query(nvml, nvml.nvmlDeviceGetHandleByUUID, visible)
    else:
        handle = query(nvml, nvml.nvmlDeviceGetHandleByIndex, int(visible or 0))
    if handle is None:
        return None

    for cumulative, function in (
        (True, nvml.nvmlDeviceGetTotalEnergyConsumption),
        (False, nvml.nvmlDeviceGetPowerUsage),
    ):
        read = partial(_read_nvml, nvml, function, handle)
        if read() is not None:
            return PowerSource(
                name="nvml", scope=Scope.GPU, rails=("board",), read=read, cumulative=cumulative
            )
    return None


def find_rapl(host: Host) -> PowerSource | None:
    """Return the source of all CPU packages and their memory; None if RAPL cannot be read."""
    zones = [_RaplZone(host, folder) for folder in _zones(host)]
    if not zones or any(zone.joules() is None for zone in zones):
        return None
    return PowerSource(
        name="rapl",
        scope=Scope.CPU,
        rails=tuple(zone.name for zone in zones),
        read=partial(read_sum, [zone.joules for zone in zones]),
        cumulative=True,
    )


def unreadable_counters(host: Host) -> list[Path]:
    """Return the RAPL files that this user may not read; by default only root may."""
    files = [folder / "energy_uj" for folder in _zones(host)]
    return [path for path in files if host.denies_access(path)]


def _read_nvml(nvml: Any, function: Callable[..., Any], handle: Any) -> Reading:
    thousandths = query(nvml, function, handle)
    return None if thousandths is None else thousandths / 1000


def _zones(host: Host) -> list[Path]:
    names = {zone: host.text(zone / "name") for zone in host.find(PACKAGES)}
    packages = [zone for zone, name in names.items() if name.startswith("package")]
    prefixes = tuple(f"{package.name}:" for package in packages)
    inside = [zone for zone in names if zone.name.startswith(prefixes)]
    return packages + [zone for zone in inside if names[zone] == "dram"]


class _RaplZone:
    """A counter of microjoules that wraps around at its maximum."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.name = host.text(folder / "name")
        self._host = host
        self._file = folder / "energy_uj"
        self._range = host.number(folder / "max_energy_range_uj") or 0
        self._last: int | None = None
        self._offset = 0  # microjoules before the last wrap-around

    def joules(self) -> Reading:
        now = self._host.number(self._file)
        if now is None:
            return None
        if self._last is not None and now < self._last:
            self._offset += self._range
        self._last = now
        return (self._offset + now) / 1e6
