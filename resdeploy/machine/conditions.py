"""In which state a machine is: power mode, clocks, heat. Two looks tell what happened between.

Sources: NVIDIA, "Jetson Linux Developer Guide", "Platform Power and Performance" (nvpmodel,
jetson_clocks, `oc*_event_cnt`); Linux, "Generic Thermal Sysfs driver" and "CPU Performance
Scaling".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from resdeploy.machine.host import Host
from resdeploy.machine.nvml import Gpu

# What the kernel's other cooling devices do does not cost speed.
FANS = re.compile("fan", re.IGNORECASE)
GPU_CLOCKS = re.compile(r"\.(gpu|ga10b|gv11b)$|^gpu-gpc")
HOT_C = 95
"""Orin and Thor reduce their clocks a few degrees above."""


@dataclass(frozen=True, slots=True)
class PowerMode:
    """A mode of nvpmodel; numbers differ from board to board."""

    name: str
    number: int


@dataclass(frozen=True, slots=True)
class Clock:
    """A frequency that its governor moves between two limits, in MHz."""

    now: float
    low: float
    high: float

    @property
    def fixed(self) -> bool:
        """Whether it cannot move, as after jetson_clocks."""
        return self.low == self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """One look; None is what cannot be told here."""

    power_mode: PowerMode | None = None
    fastest_mode: PowerMode | None = None
    gpu_clock: Clock | None = None
    cpu_clock: Clock | None = None
    temperature_c: float | None = None
    """Of the hottest sensor."""
    cooling: tuple[str, ...] = ()
    """What reduces clocks against heat at this moment."""
    throttle_count: int | None = None
    """How often heat or current has reduced clocks since the machine started."""

    @property
    def clocks_fixed(self) -> bool | None:
        """Whether jetson_clocks is on; None where the GPU's clock cannot be read."""
        return None if self.gpu_clock is None else self.gpu_clock.fixed


def read_conditions(host: Host) -> Conditions:
    """Look once."""
    temperatures = [
        celsius / 1000
        for zone in host.find("sys/class/thermal/thermal_zone*/temp")
        if (celsius := host.number(zone)) is not None and celsius > 0  # -256000: the sensor is off
    ]
    return Conditions(
        power_mode=parse_power_mode(host.run(["nvpmodel", "-q"])),
        fastest_mode=fastest_mode(host.text("etc/nvpmodel.conf")),
        gpu_clock=_gpu_clock(host),
        cpu_clock=_cpu_clock(host),
        temperature_c=max(temperatures, default=None),
        cooling=_cooling(host),
        throttle_count=_throttle_count(host),
    )


def notices(before: Conditions, after: Conditions, gpus: tuple[Gpu, ...] = ()) -> tuple[str, ...]:
    """What a reader of a benchmark must know: slower modes, moving clocks, throttling."""
    found = []
    mode, fastest = before.power_mode, before.fastest_mode
    if mode and fastest and mode != fastest:
        found.append(f"power mode {mode.name}, not {fastest.name}")
    if mode != after.power_mode and after.power_mode and mode:
        found.append(f"the power mode changed to {after.power_mode.name} meanwhile")
    if mode and before.clocks_fixed is False:
        found.append("jetson_clocks is off: clocks follow the load")
    if before.throttle_count is not None and after.throttle_count is not None and after.throttle_count > before.throttle_count:
        found.append(
            f"heat or current reduced the clocks {after.throttle_count - before.throttle_count} times meanwhile"
        )
    if after.cooling:
        found.append(f"clocks are reduced against heat: {', '.join(after.cooling)}")
    elif after.temperature_c is not None and after.temperature_c >= HOT_C:
        found.append(f"{after.temperature_c:.0f} C: close to where clocks are reduced")
    found += [
        f"{gpu.name} is held back: {', '.join(gpu.throttled_by)}"
        for gpu in gpus
        if gpu.throttled_by
    ]
    return tuple(found)


def parse_power_mode(text: str) -> PowerMode | None:
    """What `nvpmodel -q` says."""
    found = re.search(r"NV Power Mode: *(\S+)\s+(\d+)", text)
    return PowerMode(found[1], int(found[2])) if found else None


def fastest_mode(configuration: str) -> PowerMode | None:
    """MAXN_SUPER where /etc/nvpmodel.conf has it, otherwise MAXN."""
    modes = {
        name: PowerMode(name, int(number))
        for number, name in re.findall(r"< *POWER_MODEL +ID=(\d+) +NAME=(\S+)", configuration)
    }
    return modes.get("MAXN_SUPER", modes.get("MAXN"))


def _gpu_clock(host: Host) -> Clock | None:
    for folder in host.find("sys/class/devfreq/*"):
        if GPU_CLOCKS.search(folder.name):
            values = [host.number(folder / f"{name}_freq") for name in ("cur", "min", "max")]
            return _clock(values, 1e6)
    return None


def _cpu_clock(host: Host) -> Clock | None:
    folder = host.root / "sys/devices/system/cpu/cpu0/cpufreq"
    values = [host.number(folder / f"scaling_{name}_freq") for name in ("cur", "min", "max")]
    return _clock(values, 1e3)


def _clock(values: list[int | None], per_mhz: float) -> Clock | None:
    known = [value / per_mhz for value in values if value is not None]
    return Clock(*known) if len(known) == 3 else None


def _cooling(host: Host) -> tuple[str, ...]:
    active = {
        host.text(state.parent / "type")
        for state in host.find("sys/class/thermal/cooling_device*/cur_state")
        if (host.number(state) or 0) > 0
    }
    return tuple(sorted(name for name in active if name and not FANS.search(name)))


def _throttle_count(host: Host) -> int | None:
    counters = [
        *host.find("sys/class/hwmon/hwmon*/oc*_event_cnt"),  # Jetson: current
        *host.find("sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count"),  # Intel
    ]
    counts = [count for path in counters if (count := host.number(path)) is not None]
    return sum(counts) if counts else None
