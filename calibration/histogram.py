"""A histogram with a fixed number of bins, which does not depend on the order of the values.

Bins are 2^k wide and aligned to zero. While a value does not fit, k grows by one and neighbouring
bins are merged. Because floor(floor(x / w) / 2) = floor(x / 2w), the merged counts are the same as
if the bins had been wider from the start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

BINS = 4096  # on each side of zero; the larger side uses at least half of them
SMALLEST_EXPONENT = -40  # a bin width of 2^-40 is below the smallest float16

Float64Array = npt.NDArray[np.float64]


@dataclass(slots=True)
class Histogram:
    """Counts of float32 values in bins `i` = floor(value / width), for i from -BINS to BINS - 1."""

    exponent: int = SMALLEST_EXPONENT
    """Base-2 logarithm of the bin width."""
    counts: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(2 * BINS, dtype=np.int64)
    )

    @property
    def width(self) -> float:
        return math.ldexp(1.0, self.exponent)

    @property
    def centers(self) -> Float64Array:
        """Centre of every bin, (2 * BINS,)."""
        return (np.arange(-BINS, BINS, dtype=np.float64) + 0.5) * self.width

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count the values of an array of any shape, all finite."""
        largest = float(np.abs(values).max(initial=0.0))
        while largest >= BINS * self.width:
            self._widen()
        flat = values.ravel()
        # A product with a power of two is exact, but tiny negative values become -0.0, in bin 0.
        bins = np.floor(flat * np.float32(1 / self.width))
        bins -= (bins == 0) & (flat < 0)
        self.counts += np.bincount(bins.astype(np.int64) + BINS, minlength=2 * BINS)

    def _widen(self) -> None:
        merged = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.zeros_like(self.counts)
        self.counts[BINS // 2 : BINS // 2 + BINS] = merged
        self.exponent += 1
