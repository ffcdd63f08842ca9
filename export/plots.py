"""What the report plots: which tensors cost most, and how their values and ranges lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from resdeploy.calibration.histogram import BINS, Histogram
from resdeploy.calibration.ranges import Range, TensorStatistics
from resdeploy.export.recipe import Recipe

SHOWN = 12
PLOTTED = 4
BARS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CostBar:
    """A quantised tensor with the SQNR it leaves alone, and the length of its bar."""

    tensor: str
    sqnr_db: float
    share: float
    """Of the noise of the worst tensor, 0 to 1, in amplitude."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramPlot:
    """A tensor's values over all calibration images."""

    tensor: str
    heights: tuple[float, ...]
    """Of equally wide bars, 0 to 1, by the logarithm of the count."""
    low: float
    """Where the first bar begins."""
    high: float
    """Where the last bar ends."""
    clip_low: float
    """Where the range begins, as a share of the way from `low` to `high`."""
    clip_high: float
    chosen: Range
    """The range itself."""


def cost_bars(costs: Mapping[str, float]) -> tuple[CostBar, ...]:
    """The worst tensors of `sensitivity.costs_alone`."""
    worst = list(costs.items())[:SHOWN]
    return tuple(
        CostBar(tensor=tensor, sqnr_db=ratio, share=10 ** ((worst[0][1] - ratio) / 20))
        for tensor, ratio in worst
    )


def worst_histograms(
    costs: Mapping[str, float], recipe: Recipe, statistics: Mapping[str, TensorStatistics]
) -> tuple[HistogramPlot, ...]:
    """The activations that cost most."""
    worst = [tensor for tensor in costs if tensor in statistics][:PLOTTED]
    return tuple(
        histogram_plot(tensor, statistics[tensor], recipe.ranges[tensor]) for tensor in worst
    )


def histogram_plot(tensor: str, statistics: TensorStatistics, chosen: Range) -> HistogramPlot:
    """Counts in `BARS` bars from the smallest value that was seen, or zero, to the largest."""
    seen = statistics.extremes
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    span = (high - low) or 1.0
    counts = _rebin(statistics.histogram, low, span)
    logarithms = np.log1p(counts)
    heights = logarithms / max(float(logarithms.max()), 1e-12)

    def position(value: float) -> float:
        return float(np.clip((value - low) / span, 0, 1))

    return HistogramPlot(
        tensor=tensor,
        heights=tuple(float(height) for height in heights),
        low=low,
        high=high,
        clip_low=position(min(chosen.low, 0.0)),
        clip_high=position(chosen.high),
        chosen=chosen,
    )


def _rebin(histogram: Histogram, low: float, span: float) -> Sequence[float]:
    centers = (np.arange(-BINS, BINS) + 0.5) * histogram.width
    bars = np.clip(((centers - low) / span * BARS).astype(np.int64), 0, BARS - 1)
    counts: list[float] = np.bincount(bars, weights=histogram.counts, minlength=BARS).tolist()
    return counts
