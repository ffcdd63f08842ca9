"""What the report plots."""

from __future__ import annotations

import numpy as np
import pytest

from resdeploy.calibration.histogram import Histogram
from resdeploy.calibration.ranges import Range, TensorStatistics
from resdeploy.export.plots import BARS, cost_bars, histogram_plot


def statistics(values: np.ndarray) -> TensorStatistics:
    histogram = Histogram()
    histogram.add(values.astype(np.float32))
    return TensorStatistics(
        lows=np.array([values.min()], np.float32),
        highs=np.array([values.max()], np.float32),
        histogram=histogram,
    )


def test_bars_are_as_long_as_the_noise_is_loud() -> None:
    first, second = cost_bars({"worst": 30.0, "tenth of it": 50.0})
    assert first.share == 1
    assert second.share == pytest.approx(0.1)


def test_the_histogram_is_numpys() -> None:
    values = np.random.default_rng(0).normal(1, 2, 100_000).astype(np.float32)
    plot = histogram_plot("x", statistics(values), Range(low=-3.0, high=4.0))
    counts, _ = np.histogram(values, bins=BARS, range=(plot.low, plot.high))
    expected = np.log1p(counts) / np.log1p(counts).max()
    # A fine bin that lies across the edge of a bar is counted whole to one side.
    assert np.corrcoef(plot.heights, expected)[0, 1] > 0.999
    assert plot.low + plot.clip_high * (plot.high - plot.low) == pytest.approx(4.0)
    assert plot.low + plot.clip_low * (plot.high - plot.low) == pytest.approx(-3.0)


@pytest.mark.parametrize("constant", [0.0, 2.0, -3.0])
def test_a_constant_tensor_has_a_histogram(constant: float) -> None:
    values = np.full(10, constant)
    plot = histogram_plot(
        "x", statistics(values), Range(low=min(constant, 0.0), high=max(constant, 0.0))
    )
    assert len(plot.heights) == BARS
    assert sum(height > 0 for height in plot.heights) == 1
