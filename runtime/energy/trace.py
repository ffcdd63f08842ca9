"""The energy of a time window, computed from the readings of a power source."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from resdeploy.runtime.energy.source import Reading

# Readings are interpolated over gaps up to this; the load may have changed in a longer gap.
MAX_GAP_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Trace:
    """The readings of a source and their times."""

    seconds: npt.NDArray[np.float64]
    """Times in seconds, shape (N,), ascending."""
    readings: npt.NDArray[np.float64]
    """Power in watts or, if `cumulative`, energy in joules; shape (N,)."""
    cumulative: bool

    @classmethod
    def from_samples(
        cls, samples: Iterable[tuple[float, Reading]], *, cumulative: bool = False
    ) -> Trace:
        """Build a trace of (time, reading) pairs without failed readings: None or below zero.

        A total below zero is an error, since modules and GPUs only consume power. Single rails
        near zero can read below zero; their sum keeps the signs, because such errors average out.
        """
        kept = [(time, value) for time, value in samples if value is not None and value >= 0]
        seconds, readings = np.array(kept, dtype=np.float64).reshape(-1, 2).T
        return cls(seconds, readings, cumulative)

    def energy(self, start: float, end: float) -> float | None:
        """Return the joules between two times; None if a part of the window was not measured."""
        seconds = self.seconds
        if not len(seconds) or start < seconds[0] or end > seconds[-1]:
            return None
        gaps = np.flatnonzero(np.diff(seconds) > MAX_GAP_SECONDS)
        if np.any((seconds[gaps] < end) & (seconds[gaps + 1] > start)):
            return None
        inside = seconds[(seconds > start) & (seconds < end)]
        times = np.concatenate([[start], inside, [end]])
        values = np.interp(times, seconds, self.readings)
        return float(values[-1] - values[0] if self.cumulative else np.trapezoid(values, times))
