"""The state of a machine that affects its speed: power mode, clocks, temperature, throttling.

Sources: NVIDIA, "Jetson Linux Developer Guide", "Platform Power and Performance" (nvpmodel,
jetson_clocks, `oc*_event_cnt`); Linux, "Generic Thermal Sysfs driver" and "CPU Performance
Scaling".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from resdeploy.machine.host import Host
from resdeploy.machine.nvml import Gpu

# Fans are cooling devices of the kernel that do not reduce clocks.
FANS = re.compile("fan", re.IGNORECASE)
GPU_CLOCKS = re.compile(r"\.(gpu|ga10b|gv11b)$|^gpu-gpc")
HOT_C = 95  # in degrees Celsius; Orin and Thor reduce their clocks a few degrees above this


@dataclass(frozen=True, slots=True)
class PowerMode:
    """A power mode of nvpmodel; its number depends on the board."""

    name: str
    number: int


@dataclass(frozen=True, slots=True)
class Clock:
    """The current frequency of a clock and its limits, in MHz."""

    now: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """The state of a machine at one moment; None means unknown."""

    power_mode: PowerMode | None = None
    fastest_mode: PowerMode | None = None
    gpu_clock: Clock | None = None
    cpu_clock: Clock | None = None
    temperature_c: float | None = None
    """Temperature of the hottest sensor, in degrees Celsius."""
    cooling: tuple[str, ...] = ()
    """Names of the cooling devices that reduce clocks at this moment."""
    throttle_count: int | None = None
    """Number of times that heat or current has reduced the clocks since the machine started."""

    @property
    def clocks_fixed(self) -> bool | None:
        """Return True if jetson_clocks is on; None if the GPU's clock cannot be read."""
        return None if self.gpu_clock is None else self.gpu_clock.low == self.gpu_clock.high


def read_conditions(host: Host) -> Conditions:
    """Read the current state."""
    clocks = host.find("sys/class/devfreq/*")
    gpu = next((folder for folder in clocks if GPU_CLOCKS.search(folder.name)), None)
    temperatures = [
        celsius / 1000
        for zone in host.find("sys/class/thermal/thermal_zone*/temp")
        if (celsius := host.number(zone)) is not None and celsius > 0  # a sensor at -256000 is off
    ]
    return Conditions(
        power_mode=parse_power_mode(host.run(["nvpmodel", "-q"])),
        fastest_mode=fastest_mode(host.text("etc/nvpmodel.conf")),
        gpu_clock=_read_clock(host, f"{gpu}/", 1e6) if gpu else None,
        cpu_clock=_read_clock(host, "sys/devices/system/cpu/cpu0/cpufreq/scaling_", 1e3),
        temperature_c=max(temperatures, default=None),
        cooling=_cooling(host),
        throttle_count=_throttle_count(host),
    )


def notices(before: Conditions, after: Conditions, gpus: tuple[Gpu, ...] = ()) -> tuple[str, ...]:
    """Return a sentence for everything that made a benchmark slower or its results unstable.

    The arguments are the conditions before and after it, and the discrete GPUs after it.
    """
    found = []
    mode, fastest = before.power_mode, before.fastest_mode
    if mode and fastest and mode != fastest:
        found.append(f"the power mode is {mode.name}; {fastest.name} is faster")
    if mode != after.power_mode and after.power_mode and mode:
        found.append(f"the power mode changed to {after.power_mode.name} during the run")
    if mode and before.clocks_fixed is False:
        found.append("jetson_clocks is off, so the clocks follow the load")
    throttled = (after.throttle_count or 0) - (before.throttle_count or 0)
    if before.throttle_count is not None and throttled > 0:
        found.append(f"heat or current reduced the clocks {throttled} times during the run")
    if after.cooling:
        found.append(f"heat reduces the clocks: {', '.join(after.cooling)}")
    elif after.temperature_c is not None and after.temperature_c >= HOT_C:
        found.append(
            f"the temperature is {after.temperature_c:.0f} C, close to the limit of full clocks"
        )
    found += [
        f"the clock of {gpu.name} is reduced: {', '.join(gpu.throttled_by)}"
        for gpu in gpus
        if gpu.throttled_by
    ]
    return tuple(found)


def load_average(host: Host) -> float | None:
    """Return the mean number of processes that ran or waited in the last minute, if it is known."""
    found = re.match(r"\d+\.\d+", host.text("proc/loadavg"))
    return float(found[0]) if found else None


def parse_power_mode(text: str) -> PowerMode | None:
    """Parse the output of `nvpmodel -q`; return None if it names no mode."""
    found = re.search(r"NV Power Mode: *(\S+)\s+(\d+)", text)
    return PowerMode(found[1], int(found[2])) if found else None


def fastest_mode(configuration: str) -> PowerMode | None:
    """Return MAXN_SUPER if /etc/nvpmodel.conf has it, otherwise MAXN; None if it has neither."""
    modes = {
        name: PowerMode(name, int(number))
        for number, name in re.findall(r"< *POWER_MODEL +ID=(\d+) +NAME=(\S+)", configuration)
    }
    return modes.get("MAXN_SUPER", modes.get("MAXN"))


def _read_clock(host: Host, prefix: str, per_mhz: float) -> Clock | None:
    values = [host.number(f"{prefix}{name}_freq") for name in ("cur", "min", "max")]
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
        *host.find("sys/class/hwmon/hwmon*/oc*_event_cnt"),  # over-current events of a Jetson
        *host.find("sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count"),  # Intel
    ]
    counts = [count for path in counters if (count := host.number(path)) is not None]
    return sum(counts) if counts else None
