"""The description of a power sensor or an energy counter."""

from __future__ import annotations

from collections.abc import Callable
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
