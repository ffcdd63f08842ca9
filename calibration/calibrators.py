"""From what was seen of a tensor to the range that its integers shall cover.

A symmetric grid has 127 steps from zero to the range's larger end, an asymmetric one 255 steps
from the range's lower end to its upper.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import numpy as np

from resdeploy.calibration.histogram import BINS, Float64Array
from resdeploy.calibration.ranges import Range, TensorStatistics
from resdeploy.calibration.scales import INT8_MAX, UINT8_MAX

CLIP_CANDIDATES = np.geomspace(0.02, 1.0, 200)
ENTROPY_FIRST = 128  # bins, and levels they are reduced to: TensorRT's numbers
ENTROPY_STRIDE = 16  # a clip 2 % off is as good


class Calibrator(Protocol):
    """Looks at a tensor's statistics and decides its range for one kind of grid."""

    def __call__(self, statistics: TensorStatistics, *, symmetric: bool) -> Range: ...


def max_range(statistics: TensorStatistics, *, symmetric: bool) -> Range:
    """Everything that was seen: nothing of the calibration images is clipped.

    Source: Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference: A
    whitepaper" (2018), arXiv:1806.08342, section 2.
    """
    return statistics.extremes


def image_quantile(share: float, statistics: TensorStatistics, *, symmetric: bool) -> Range:
    """What `share` of the images stay within from end to end.

    A few odd images have values many times those of all others; a quantile over images leaves
    them out without clipping the usual ones, which a quantile over values does.
    """
    low = min(float(np.quantile(statistics.lows, 1 - share)), 0.0)
    return Range(low=low, high=max(float(np.quantile(statistics.highs, share)), 0.0))


def percentile(share: float, statistics: TensorStatistics, *, symmetric: bool) -> Range:
    """All values but the share `1 - share` at each end, zero included.

    Source: McKinstry et al., "Discovering low-precision networks close to full-precision networks
    for efficient embedded inference" (2018), arXiv:1809.04191, section 3.
    """
    histogram = statistics.histogram
    inside = share * histogram.counts.sum()
    last = int(np.searchsorted(np.cumsum(histogram.counts), inside))
    first = int(np.searchsorted(np.cumsum(histogram.counts[::-1]), inside))  # from above
    seen = statistics.extremes
    low = max((BINS - 1 - first) * histogram.width, seen.low)
    high = min((last - BINS + 1) * histogram.width, seen.high)
    return Range(low=min(low, 0.0), high=max(high, 0.0))


def mse(statistics: TensorStatistics, *, symmetric: bool) -> Range:
    """The share of the extremes with the least mean squared error of rounding and clipping.

    A value well inside the range is rounded by up to half a step either way, step^2 / 12 in the
    mean, and a smaller one than that is lost whole; outside, what lies beyond the end is lost.

    Source: Sung, Shin and Hwang, "Resiliency of deep neural networks under quantization" (2015),
    arXiv:1511.06488, section 3 (least squared error); the noise of rounding: Widrow, Kollar and
    Liu, "Statistical theory of quantization" (1996).
    """
    seen = _with_zero(statistics.extremes)
    values, counts = _occupied(statistics)
    errors = []
    for share in CLIP_CANDIDATES:
        low, high = share * seen.low, share * seen.high
        step = max(-low, high) / INT8_MAX if symmetric else (high - low) / UINT8_MAX
        # A symmetric grid reaches as far on the other side as well.
        reach = (-max(-low, high), max(-low, high)) if symmetric else (low, high)
        clipped = values - np.clip(values, *reach)
        rounded = np.minimum(np.square(values), step**2 / 12)
        errors.append(float(counts @ np.where(clipped, np.square(clipped), rounded)))
    best = float(CLIP_CANDIDATES[int(np.argmin(errors))])
    return Range(low=best * seen.low, high=best * seen.high)


def entropy(statistics: TensorStatistics, *, symmetric: bool) -> Range:
    """The clip at which the distribution of magnitudes loses least when reduced to 128 levels.

    Every `ENTROPY_STRIDE`-th clip from bin 128 on is tried: values beyond it are counted into its
    last bin (P), the bins are merged to 128 levels and spread evenly over their occupied bins
    again (Q), and the least Kullback-Leibler divergence of Q from P wins. Exact zeros, which any
    scale keeps, count as much as the smallest values do.

    Source: Migacz, "8-bit inference with TensorRT", GPU Technology Conference 2017, slides 22-38.
    """
    counts = statistics.histogram.counts
    magnitudes = (counts[BINS:] + counts[:BINS][::-1]).astype(np.float64)
    magnitudes[0] = magnitudes[1]
    used = int(np.flatnonzero(magnitudes).max(initial=0)) + 1
    clips = range(ENTROPY_FIRST, used + 1, ENTROPY_STRIDE)
    if not clips:
        return statistics.extremes
    divergences = [_divergence(magnitudes[:used], clip) for clip in clips]
    clip = clips[int(np.argmin(divergences))] * statistics.histogram.width
    seen = _with_zero(statistics.extremes)
    return Range(low=max(seen.low, -clip), high=min(seen.high, clip))


def _divergence(magnitudes: Float64Array, clip: int) -> float:
    """KL(P || Q) for the first `clip` bins, see `entropy`."""
    inside = magnitudes[:clip]
    reference = inside.copy()
    reference[-1] += magnitudes[clip:].sum()
    level = np.arange(clip) * ENTROPY_FIRST // clip
    occupied = inside > 0
    total = np.bincount(level, weights=inside, minlength=ENTROPY_FIRST)
    number = np.bincount(level, weights=occupied, minlength=ENTROPY_FIRST)
    spread = np.where(occupied, total[level] / np.maximum(number[level], 1), 0.0)
    p, q = reference / reference.sum(), spread / max(spread.sum(), 1.0)
    both = (p > 0) & (q > 0)
    lost = p[(p > 0) & (q == 0)].sum()  # an outlier counted into an empty bin: no Q explains it
    return float(np.sum(p[both] * np.log(p[both] / q[both])) + lost * 100)


def _occupied(statistics: TensorStatistics) -> tuple[Float64Array, Float64Array]:
    """The middles of all bins that hold values, and how many."""
    histogram = statistics.histogram
    where = np.flatnonzero(histogram.counts)
    return histogram.centers[where], histogram.counts[where].astype(np.float64)


def _with_zero(chosen: Range) -> Range:
    return Range(low=min(chosen.low, 0.0), high=max(chosen.high, 0.0))


CALIBRATORS: dict[str, Calibrator] = {
    "max": max_range,
    "image-95": partial(image_quantile, 0.95),
    "image-97": partial(image_quantile, 0.97),
    "image-99": partial(image_quantile, 0.99),
    "percentile-99.9": partial(percentile, 0.999),
    "percentile-99.99": partial(percentile, 0.9999),
    "percentile-99.999": partial(percentile, 0.99999),
    "entropy": entropy,
    "mse": mse,
}
