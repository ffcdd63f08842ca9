"""From readings to joules: gaps are bridged while they are short, and unknown when they are not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from resdeploy.runtime.energy.source import Reading

# A straight line over a longer hole would be a guess: the load may have come and gone in it.
MAX_GAP_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Trace:
    """What a source read, and when."""

    seconds: npt.NDArray[np.float64]
    """Shape (N,), ascending."""
    readings: npt.NDArray[np.float64]
    """Shape (N,), in watts or, with `cumulative`, in joules."""
    cumulative: bool

    @classmethod
    def from_samples(cls, samples: Iterable[tuple[float, Reading]], *, cumulative: bool = False) -> Trace:
        """Keep the readings that did not fail.

        A total below zero is a failed one like None: modules and GPUs only consume. Single rails
        near zero do read below it; whoever adds them up keeps their signs, which average out.
        """
        kept = [(when, value) for when, value in samples if value is not None and value >= 0]
        seconds, readings = np.array(kept, dtype=np.float64).reshape(-1, 2).T
        return cls(seconds, readings, cumulative)

    def energy(self, start: float, end: float) -> float | None:
        """Joules between two times; None where a part of it was not measured."""
        seconds = self.seconds
        if not len(seconds) or start < seconds[0] or end > seconds[-1]:
            return None
        holes = np.flatnonzero(np.diff(seconds) > MAX_GAP_SECONDS)
        if np.any((seconds[holes] < end) & (seconds[holes + 1] > start)):
            return None
        inside = seconds[(seconds > start) & (seconds < end)]
        corners = np.concatenate([[start], inside, [end]])
        values = np.interp(corners, seconds, self.readings)
        return float(values[-1] - values[0] if self.cumulative else np.trapezoid(values, corners))
