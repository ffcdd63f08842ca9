"""Statistics of a tensor over the calibration images, and the range chosen for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from resdeploy.calibration.histogram import Histogram
from resdeploy.errors import CalibrationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Interval of values that a quantised tensor represents; values outside it are clipped."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise CalibrationError(
                f"the range of a tensor is {self.low} to {self.high}, which is no finite interval",
                "check the weights for NaN and infinity",
            )

    def with_zero(self) -> Range:
        """Return the smallest range that contains this one and zero."""
        return Range(low=min(self.low, 0.0), high=max(self.high, 0.0))


Ranges = Mapping[str, Range]
"""Ranges by tensor name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorStatistics:
    """Statistics of one tensor over all calibration images."""

    lows: npt.NDArray[np.float32]
    """Smallest value in each image, (images,)."""
    highs: npt.NDArray[np.float32]
    """Largest value in each image, (images,)."""
    histogram: Histogram
    """Histogram of all values of all images."""

    @property
    def extremes(self) -> Range:
        """Smallest and largest observed value."""
        return Range(low=float(self.lows.min()), high=float(self.highs.max()))

    @property
    def growth(self) -> float:
        """Expected relative growth of the largest magnitude from half of the images to all.

        Of many images, the one with the k-th largest magnitude has the largest magnitude of a
        random half with probability 2^-k.
        """
        magnitudes = np.sort(np.maximum(self.highs, -self.lows).astype(np.float64))[::-1]
        weights = 0.5 ** np.arange(1, len(magnitudes) + 1)
        of_half = float(magnitudes @ weights / weights.sum())
        return float(magnitudes[0]) / of_half - 1 if of_half > 0 else 0.0
