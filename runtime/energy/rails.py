"""Power sensors on a Jetson's supply rails: INA3221, and an INA238 on Thor.

Source: Linux, "Kernel driver ina3221" and "Kernel driver ina238"; NVIDIA, "Jetson Linux Developer
Guide", "Software-Based Power Consumption Modeling" and the tables of rails of Orin and Thor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

from resdeploy.machine.device import Scope
from resdeploy.machine.host import Host
from resdeploy.runtime.energy.source import PowerSource, Reading, read_sum

INA3221 = "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in*_label"
INA238 = "sys/class/hwmon/hwmon*/power1_input"
UNUSED = re.compile(r"^NC$|sum of shunt", re.IGNORECASE)
# The rails that together supply a module. If the input rail has a sensor, it alone is used, since
# it supplies the others; an AGX Orin has no sensor at its input.
MODULE_RAILS = (
    ("VDD_IN",),  # Orin Nano and NX
    ("VIN",),  # AGX Thor
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
)


def module_rails(names: Collection[str]) -> tuple[str, ...] | None:
    """Return those of a board's rails that supply the module; None if they are unknown."""
    return next((rails for rails in MODULE_RAILS if set(rails) <= set(names)), None)


def module_power(rails: Mapping[str, float]) -> Reading:
    """Return the module's power, in the unit of the rails; None if a rail is missing."""
    names = module_rails(rails)
    return sum(rails[name] for name in names) if names else None


def find_rails(host: Host) -> PowerSource | None:
    """Return the source of the module's power; None if its rails have no readable sensors."""
    rails = _rails(host)
    names = module_rails(rails)
    if names is None:
        return None
    read = partial(read_sum, [rails[name] for name in names])
    if read() is None:
        return None
    return PowerSource(name="ina3221", scope=Scope.MODULE, rails=names, read=read)


def unreadable_sensors(host: Host) -> list[Path]:
    """Return the sensors' files that this user may not read."""
    files = [*host.find("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/curr*_input"),
             *host.find(INA238)]  # fmt: skip
    return [path for path in files if host.denies_access(path)]


def _rails(host: Host) -> dict[str, Callable[[], Reading]]:
    rails: dict[str, Callable[[], Reading]] = {}
    for label in host.find(INA3221):
        name, channel = host.text(label), label.name.removeprefix("in").removesuffix("_label")
        if name and not UNUSED.search(name):
            rails[name] = partial(_read_channel, host, label.parent, channel)
    for power in host.find(INA238):
        if host.text(power.parent / "name") == "ina238":
            name = host.text(power.parent / "power1_label") or "VIN"
            rails[name] = partial(_read_power, host, power)
    return rails


def _read_channel(host: Host, folder: Path, channel: str) -> Reading:
    millivolts = host.number(folder / f"in{channel}_input")
    milliamperes = host.number(folder / f"curr{channel}_input")
    if millivolts is None or milliamperes is None:
        return None
    return millivolts * milliamperes / 1e6


def _read_power(host: Host, file: Path) -> Reading:
    microwatts = host.number(file)
    return None if microwatts is None else microwatts / 1e6
