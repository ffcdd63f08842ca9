"""The vocabulary of calibration: what was seen of a tensor, and the range chosen for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
    """What one pass over the calibration images leaves of a tensor: two numbers an image."""

    lows: npt.NDArray[np.float32]
    """Smallest value in each image, shape (images,)."""
    highs: npt.NDArray[np.float32]
    """Largest value in each image, shape (images,)."""


Calibrator = Callable[[TensorStatistics], Range]
"""A calibrator looks at a tensor's statistics and decides its range."""


def max_range(statistics: TensorStatistics) -> Range:
    """Everything that was seen: nothing of the calibration images is clipped.

    Source: Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference: A
    whitepaper" (2018), arXiv:1806.08342, section 2.
    """
    return Range(low=float(statistics.lows.min()), high=float(statistics.highs.max()))


CALIBRATORS: dict[str, Calibrator] = {"max": max_range}
