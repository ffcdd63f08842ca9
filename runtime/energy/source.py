"""What can be asked for power or energy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from resdeploy.machine.device import Scope

Reading = float | None
"""Watts, or joules since some beginning; None where the sensor failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerSource:
    """One way to measure."""

    name: str
    scope: Scope
    rails: tuple[str, ...]
    """What it adds up."""
    read: Callable[[], Reading]
    cumulative: bool = False
    """Whether `read` gives joules since some beginning, instead of watts."""
    close: Callable[[], None] = lambda: None
