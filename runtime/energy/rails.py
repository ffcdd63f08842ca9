"""Sensors on a Jetson's supply rails: INA3221 in the kernel's files, and an INA238 on Thor.

Source: Linux, "Kernel driver ina3221" and "Kernel driver ina238"; NVIDIA, "Jetson Linux Developer
Guide", "Software-Based Power Consumption Modeling" and the tables of rails of Orin and Thor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from resdeploy.machine.device import Scope
from resdeploy.machine.host import Host
from resdeploy.runtime.energy.source import PowerSource, Reading

INA3221 = "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in*_label"
INA238 = "sys/class/hwmon/hwmon*/power1_input"
UNUSED = re.compile(r"^NC$|sum of shunt", re.IGNORECASE)
# The rails that together supply a module: the input where it is measured, for the others are
# behind it; an AGX Orin measures none.
TOTALS = (
    ("VDD_IN",),  # Orin Nano and NX
    ("VIN",),  # AGX Thor
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
)


def module_rails(names: Collection[str]) -> tuple[str, ...] | None:
    """Which of a board's rails make up its module; None where they are not known."""
    return next((rails for rails in TOTALS if set(rails) <= set(names)), None)


def module_power(rails: Mapping[str, float]) -> Reading:
    """The module's power, in the unit of the rails; None where a rail is missing."""
    rails_of_module = module_rails(rails)
    return sum(rails[name] for name in rails_of_module) if rails_of_module else None


def find_rails(host: Host) -> PowerSource | None:
    """The board's sensors; None where there are none, or not those of the module's supply."""
    rails = _rails(host)
    rails_of_module = module_rails(rails)
    if rails_of_module is None:
        return None

    def read() -> Reading:
        values = [rails[name]() for name in rails_of_module]
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == len(values) else None  # a part is no total

    if read() is None:
        return None
    return PowerSource(name="ina3221", scope=Scope.MODULE, rails=rails_of_module, read=read)


def unreadable_sensors(host: Host) -> list[Path]:
    """Sensors' files that only another user may read."""
    files = [*host.find("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/curr*_input"),
             *host.find(INA238)]  # fmt: skip
    return [path for path in files if host.denies_access(path)]


def _rails(host: Host) -> dict[str, Callable[[], Reading]]:
    rails: dict[str, Callable[[], Reading]] = {}
    for label in host.find(INA3221):
        name, channel = host.text(label), label.name.removeprefix("in").removesuffix("_label")
        if name and not UNUSED.search(name):
            rails[name] = _channel(host, label.parent, channel)
    for power in host.find(INA238):
        if host.text(power.parent / "name") == "ina238":
            rails[host.text(power.parent / "power1_label") or "VIN"] = _microwatts(host, power)
    return rails


def _channel(host: Host, folder: Path, channel: str) -> Callable[[], Reading]:
    def read() -> Reading:
        millivolts = host.number(folder / f"in{channel}_input")
        milliamperes = host.number(folder / f"curr{channel}_input")
        if millivolts is None or milliamperes is None:
            return None
        return millivolts * milliamperes / 1e6

    return read


def _microwatts(host: Host, path: Path) -> Callable[[], Reading]:
    def read() -> Reading:
        microwatts = host.number(path)
        return None if microwatts is None else microwatts / 1e6

    return read
