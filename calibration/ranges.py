"""The vocabulary of calibration: what was seen of a tensor, and the range chosen for it."""

from __future__ import annotations

import math
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
