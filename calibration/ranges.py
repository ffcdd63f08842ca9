"""The vocabulary of calibration: what was seen of a tensor, and the range chosen for it."""

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
    """The values that a quantised tensor shall be able to hold; what lies outside is clipped."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise CalibrationError(
                f"a tensor's range is {self.low} to {self.high}",
                "look for NaN or infinity in the weights",
            )


Ranges = Mapping[str, Range]
"""By the tensor's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorStatistics:
    """What one pass over the calibration images leaves of a tensor, whatever their number."""

    lows: npt.NDArray[np.float32]
    """Smallest value in each image, shape (images,)."""
    highs: npt.NDArray[np.float32]
    """Largest value in each image, shape (images,)."""
    histogram: Histogram
    """All values of all images."""

    @property
    def extremes(self) -> Range:
        """Everything that was seen."""
        return Range(low=float(self.lows.min()), high=float(self.highs.max()))

    @property
    def growth(self) -> float:
        """Share by which the largest magnitude grows from half of the images to all of them.

        Expected over all halves, so it does not depend on the order: the k-th largest of many
        images is the largest of a random half with probability 2^-k.
        """
        magnitudes = np.sort(np.maximum(self.highs, -self.lows).astype(np.float64))[::-1]
        chances = 0.5 ** np.arange(1, len(magnitudes) + 1)
        of_half = float(magnitudes @ chances / chances.sum())
        return float(magnitudes[0]) / of_half - 1 if of_half > 0 else 0.0
