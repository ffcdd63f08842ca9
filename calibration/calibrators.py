"""Calibrators, which choose the range of values that a tensor's integers cover.

A grid is the set of values that the integers represent. A symmetric grid has 127 steps from zero to
the larger end of the range. An asymmetric grid has 255 steps from the lower to the upper end.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import numpy as np

from resdeploy.calibration.histogram import BINS, Float64Array
from resdeploy.calibration.ranges import Range, TensorStatistics
from resdeploy.calibration.scales import INT8_MAX, UINT8_MAX

CLIP_CANDIDATES = np.geomspace(0.02, 1.0, 200)  # as shares of the extremes
ENTROPY_LEVELS = 128  # levels of the merged histogram, and bins of the first clip, as in TensorRT
ENTROPY_STRIDE = 16  # bins between two candidates; a clip that differs by 2 % is equally good


class Calibrator(Protocol):
    """Function that chooses a tensor's range from its statistics, for one kind of grid."""

    def __call__(self, statistics: TensorStatistics, *, symmetric: bool) -> Range: ...


def max_range(statistics: TensorStatistics, *, symmetric: bool) -> Range:
    """Return the smallest and the largest observed value: no observed value is clipped.

    Source: Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference: A
    whitepaper" (2018), arXiv:1806.08342, section 2.
    """
    return statistics.extremes


def image_quantile(share: float, statistics: TensorStatistics, *, symmetric: bool) -> Range:
    """Return the range from a quantile of the images' minima to a quantile of their maxima.

    The values of a few outlier images are many times larger than all others. A quantile over images
    ignores these images and does not clip typical ones. A quantile over values clips both.
    """
    low, high = np.quantile(statistics.lows, 1 - share), np.quantile(statistics.highs, share)
    return Range(low=float(low), high=float(high)).with_zero()


def percentile(share: float, statistics: TensorStatistics, *, symmetric: bool) -> Range:
    """Return the range that clips the share `1 - share` of the values at each end.

    Source: McKinstry et al., "Discovering low-precision networks close to full-precision networks
    for efficient embedded inference" (2018), arXiv:1809.04191, section 3.
    """
    histogram = statistics.histogram
    kept = share * histogram.counts.sum()
    bins_below_high = int(np.searchsorted(np.cumsum(histogram.counts), kept))
    bins_above_low = int(np.searchsorted(np.cumsum(histogram.counts[::-1]), kept))
    extremes = statistics.extremes
    low = max((BINS - 1 - bins_above_low) * histogram.width, extremes.low)
    high = min((bins_below_high - BINS + 1) * histogram.width, extremes.high)
    return Range(low=min(low, 0.0), high=max(high, 0.0))


def mse(statistics: TensorStatistics, *, symmetric: bool) -> Range:
    """Return the scaled extremes with the least mean squared error of rounding and clipping.

    The squared error of a value inside the range is step^2 / 12 on average (rounding by up to half
    a step), but at most the squared value itself. The error of a value outside the range is its
    distance to the range.

    Source: Sung, Shin and Hwang, "Resiliency of deep neural networks under quantization" (2015),
    arXiv:1511.06488, section 3 (least squared error); the noise of rounding: Widrow, Kollar and
    Liu, "Statistical theory of quantization" (1996).
    """
    extremes = statistics.extremes.with_zero()
    histogram = statistics.histogram
    occupied = np.flatnonzero(histogram.counts)
    values, counts = histogram.centers[occupied], histogram.counts[occupied].astype(np.float64)
    errors = []
    for share in CLIP_CANDIDATES:
        low, high = share * extremes.low, share * extremes.high
        step = max(-low, high) / INT8_MAX if symmetric else (high - low) / UINT8_MAX
        limits = (-max(-low, high), max(-low, high)) if symmetric else (low, high)
        clipped = values - np.clip(values, *limits)
        rounded = np.minimum(np.square(values), step**2 / 12)
        errors.append(float(counts @ np.where(clipped, np.square(clipped), rounded)))
    best = float(CLIP_CANDIDATES[int(np.argmin(errors))])
    return Range(low=best * extremes.low, high=best * extremes.high)


def entropy(statistics: TensorStatistics, *, symmetric: bool) -> Range:
    """Return the range up to the clip with the least Kullback-Leibler divergence of P from Q.

    A clip is the largest magnitude that is not clipped; every 16th bin from 128 on is a candidate.
    P is the histogram of the magnitudes up to the clip, and its last bin also counts all larger
    values. Q is the histogram merged to 128 levels; each level is spread evenly over its occupied
    bins again. The bin of exact zeros, which every scale represents, gets the next bin's count.

    Source: Migacz, "8-bit inference with TensorRT", GPU Technology Conference 2017, slides 22-38.
    """
    counts = statistics.histogram.counts
    magnitudes = (counts[BINS:] + counts[:BINS][::-1]).astype(np.float64)
    magnitudes[0] = magnitudes[1]
    used = int(np.flatnonzero(magnitudes).max(initial=0)) + 1
    clips = range(ENTROPY_LEVELS, used + 1, ENTROPY_STRIDE)
    if not clips:
        return statistics.extremes
    divergences = [_divergence(magnitudes[:used], clip) for clip in clips]
    clip = clips[int(np.argmin(divergences))] * statistics.histogram.width
    extremes = statistics.extremes.with_zero()
    return Range(low=max(extremes.low, -clip), high=min(extremes.high, clip))


def _divergence(magnitudes: Float64Array, clip: int) -> float:
    """Return KL(P || Q) for the first `clip` bins, see `entropy`."""
    inside = magnitudes[:clip]
    reference = inside.copy()
    reference[-1] += magnitudes[clip:].sum()
    level = np.arange(clip) * ENTROPY_LEVELS // clip
    occupied = inside > 0
    total = np.bincount(level, weights=inside, minlength=ENTROPY_LEVELS)
    number = np.bincount(level, weights=occupied, minlength=ENTROPY_LEVELS)
    spread = np.where(occupied, total[level] / np.maximum(number[level], 1), 0.0)
    p, q = reference / reference.sum(), spread / max(spread.sum(), 1.0)
    both = (p > 0) & (q > 0)
    # If the last bin is empty, the values clipped to it make the divergence infinite. Use a large
    # finite factor for them.
    lost = p[(p > 0) & (q == 0)].sum()
    return float(np.sum(p[both] * np.log(p[both] / q[both])) + lost * 100)


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
