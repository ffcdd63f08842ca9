"""Tests of the analysis that the report plots."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from resdeploy.bundle.analysis import Remedy, read_analysis, worst_int8
from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import Encoding, Quality, QualityOrigin
from resdeploy.calibration.histogram import Histogram
from resdeploy.calibration.ranges import Range, TensorStatistics
from resdeploy.export import noise_analysis
from resdeploy.export.noise_analysis import BARS, explain, histogram_of


def statistics(values: np.ndarray) -> TensorStatistics:
    histogram = Histogram()
    histogram.add(values.astype(np.float32))
    return TensorStatistics(
        lows=np.array([values.min()], np.float32),
        highs=np.array([values.max()], np.float32),
        histogram=histogram,
    )


def test_layers_have_costs_and_the_order_of_the_graph(tiny_bundle: Bundle) -> None:
    analysis = read_analysis(tiny_bundle)
    assert analysis is not None
    names = [layer.name for layer in analysis.layers]
    assert (names[0], names[1], names[-1]) == ("conv1", "layer1.0.conv1", "fc")
    assert analysis.layers[1].macs == 64 * 64 * 9 * 8 * 8  # channels, kernel, pixels
    assert all(layer.weight_sqnr_db is not None for layer in analysis.layers)
    assert all(layer.input_sqnr_db is not None for layer in analysis.layers)
    worst = worst_int8(tiny_bundle.manifest.artifacts)
    assert worst is not None
    assert analysis.encoding is worst.encoding
    assert analysis.remedy.sqnr_db == worst.parity.sqnr_db
    sqnrs = {layer.tensor: layer.sqnr_alone_db for layer in explain(tiny_bundle, images=8).layers}
    # The bundle has the biases as integers, which are rounded.
    expected = pytest.approx(sqnrs["layer1.0.conv1.weight"], abs=0.02)
    assert analysis.layers[1].weight_sqnr_db == expected
    assert analysis.layers[1].input_sqnr_db == pytest.approx(sqnrs["relu"], abs=0.2)


def test_the_worst_graph_is_that_of_the_images_that_judged_it(tiny_bundle: Bundle) -> None:
    """A few golden images may agree equally often, or more often, in the worse graph."""
    first, second = (
        artifact for artifact in tiny_bundle.manifest.artifacts if artifact.precision == "int8"
    )
    quality = Quality(images=128, agreement=97.7, sqnr_db=28.0, origin=QualityOrigin.HELD_OUT)
    first, second = (
        dataclasses.replace(
            artifact,
            quality=dataclasses.replace(quality, agreement=agreement),
            parity=dataclasses.replace(artifact.parity, agreement=golden),
        )
        for artifact, agreement, golden in ((first, 97.7, 93.75), (second, 95.3, 100.0))
    )
    assert worst_int8((first, second)) == second


def test_one_bundle_has_one_action(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = read_analysis(tiny_bundle)
    assert analysis is not None
    other = next(e for e in (Encoding.CPU, Encoding.TENSORRT) if e is not analysis.encoding)
    given: list[dict[str, float]] = []

    def record(*arguments: Any) -> Remedy:
        given.append(arguments[-1])
        return dataclasses.replace(analysis.remedy, encoding=other)

    monkeypatch.setattr(noise_analysis, "find_remedy", record)
    assert explain(tiny_bundle, images=1).remedy == analysis.remedy
    assert given == []
    for images in (1, 2):
        explain(tiny_bundle, encoding=other, images=images)
    assert given[0] == given[1]  # whatever the option --images is


def test_the_histogram_matches_numpy() -> None:
    values = np.random.default_rng(0).normal(1, 2, 100_000).astype(np.float32)
    plot = histogram_of("x", statistics(values), Range(low=-3.0, high=4.0))
    counts, _ = np.histogram(values, bins=BARS, range=(plot.low, plot.high))
    expected = np.log1p(counts) / np.log1p(counts).max()
    # A bin on the edge of two bars is counted in one of them.
    assert np.corrcoef(plot.heights, expected)[0, 1] > 0.999
    assert (plot.range_low, plot.range_high) == (-3.0, 4.0)


@pytest.mark.parametrize("constant", [0.0, 2.0, -3.0])
def test_a_constant_tensor_has_a_histogram(constant: float) -> None:
    values = np.full(10, constant)
    plot = histogram_of(
        "x", statistics(values), Range(low=min(constant, 0.0), high=max(constant, 0.0))
    )
    assert len(plot.heights) == BARS
    assert sum(height > 0 for height in plot.heights) == 1
