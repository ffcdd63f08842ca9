"""The description of a power sensor or an energy counter."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from resdeploy.machine.device import Scope

Reading = float | None
"""Power in watts, or energy in joules since an arbitrary time; None if the sensor failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerSource:
    """A power sensor or an energy counter."""

    name: str
    scope: Scope
    rails: tuple[str, ...]
    """Names of the supplies or counters whose sum `read` returns."""
    read: Callable[[], Reading]
    cumulative: bool = False
    """True if `read` returns joules since an arbitrary time, instead of watts."""
    close: Callable[[], None] = lambda: None


def read_sum(functions: Iterable[Callable[[], Reading]]) -> Reading:
    """Return the sum of what the functions return; None if one of them returns None."""
    readings = [function() for function in functions]
    known = [reading for reading in readings if reading is not None]
    return sum(known) if len(known) == len(readings) else None
