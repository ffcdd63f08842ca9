"""Tests of the calibrators against NumPy and ONNX Runtime's calibrator."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.quantization.calibrate import HistogramCollector

from resdeploy.calibration.calibrators import CALIBRATORS, entropy, max_range, mse
from resdeploy.calibration.histogram import Histogram
from resdeploy.calibration.ranges import Range, TensorStatistics

Images = npt.NDArray[np.float32]


def statistics(images: Images) -> TensorStatistics:
    """Return the statistics of activations (images, values)."""
    histogram = Histogram()
    histogram.add(images)
    return TensorStatistics(lows=images.min(axis=1), highs=images.max(axis=1), histogram=histogram)


def activations(seed: int = 0, images: int = 200, *, relu: bool = True) -> Images:
    """Return normally distributed values (images, 500), 12 times larger in the first 3 images."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(images, 500)) * generator.lognormal(0, 0.3, (images, 1))
    values[:3] *= 12
    return np.asarray(np.maximum(values, 0) if relu else values, dtype=np.float32)


def quantised(values: Images, chosen: Range, *, symmetric: bool) -> npt.NDArray[np.float64]:
    """Round and clip in float64, independently of the calibrators' code."""
    x = values.astype(np.float64)
    if symmetric:
        step = max(-chosen.low, chosen.high) / 127
        return np.clip(np.rint(x / step), -127, 127) * step
    step = (chosen.high - chosen.low) / 255
    return np.clip(np.rint((x - chosen.low) / step), 0, 255) * step + chosen.low


@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.parametrize("symmetric", [True, False])
@settings(max_examples=20)
@given(seed=st.integers(0, 1000), relu=st.booleans(), scale=st.floats(1e-3, 1e3))
def test_ranges_are_within_the_observed_values(
    name: str, symmetric: bool, seed: int, relu: bool, scale: float
) -> None:
    images = np.float32(scale) * activations(seed, images=20, relu=relu)
    chosen = CALIBRATORS[name](statistics(images), symmetric=symmetric)
    assert images.min() <= chosen.low <= 0 <= chosen.high <= images.max()
    assert chosen.high > 0


@pytest.mark.parametrize("name", CALIBRATORS)
def test_the_order_of_images_does_not_matter(name: str) -> None:
    images = activations()
    shuffled = np.random.default_rng(1).permutation(images)
    for symmetric in (True, False):
        first = CALIBRATORS[name](statistics(images), symmetric=symmetric)
        assert CALIBRATORS[name](statistics(shuffled), symmetric=symmetric) == first


@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.parametrize("values", [[0.0, 0.0], [0.0, 3.0], [-2.0, 0.0], [5.0, 5.0], [-1e-9, 1e-9]])
def test_extreme_tensors_have_a_finite_range(name: str, values: list[float]) -> None:
    images = np.array([values], np.float32)
    chosen = CALIBRATORS[name](statistics(images), symmetric=True)
    assert chosen.low <= max(values)
    assert np.isfinite([chosen.low, chosen.high]).all()


def test_max_is_the_range_of_all_values() -> None:
    images = activations(relu=False)
    chosen = max_range(statistics(images), symmetric=True)
    assert (chosen.low, chosen.high) == (float(images.min()), float(images.max()))


@pytest.mark.parametrize("share", [95, 97, 99])
def test_image_quantiles_match_numpy(share: int) -> None:
    images = activations(relu=False)
    chosen = CALIBRATORS[f"image-{share}"](statistics(images), symmetric=True)
    assert chosen.high == pytest.approx(np.percentile(images.max(1), share))
    assert chosen.low == pytest.approx(np.percentile(images.min(1), 100 - share))


@pytest.mark.parametrize("share", [99.9, 99.99, 99.999])
@pytest.mark.parametrize("relu", [True, False])
def test_percentiles_match_numpy_within_a_bin(share: float, relu: bool) -> None:
    images = activations(images=203, relu=relu)  # 203, so that no share is a whole number
    observed = statistics(images)
    chosen = CALIBRATORS[f"percentile-{share:g}"](observed, symmetric=True)
    for ours, exact in (
        (chosen.high, np.percentile(images, share, method="inverted_cdf")),
        (chosen.low, -np.percentile(-images, share, method="inverted_cdf")),
    ):
        assert ours == pytest.approx(float(exact), abs=observed.histogram.width)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_mse_is_close_to_the_best_clip(symmetric: bool, relu: bool) -> None:
    images = activations(relu=relu)

    def error(chosen: Range) -> float:
        return float(np.square(quantised(images, chosen, symmetric=symmetric) - images).sum())

    observed = statistics(images)
    low, high = min(observed.extremes.low, 0.0), observed.extremes.high
    best = min(error(Range(low=s * low, high=s * high)) for s in np.linspace(0.02, 1, 400))
    # The tolerance is for the model of the rounding noise, and for the 2 % between two candidates.
    ours, largest = (error(choose(observed, symmetric=symmetric)) for choose in (mse, max_range))
    assert ours <= 1.1 * best
    assert ours < largest


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    # With a few outlier images, the divergence is flat over a wide range of clips. Therefore its
    # minimum depends on the bins, on the steps between clips and on the rule for empty bins.
    ("outlier_factor", "tolerance"),
    [(1.0, 0.1), (12.0, 0.5)],
)
def test_entropy_matches_onnx_runtime(relu: bool, outlier_factor: float, tolerance: float) -> None:
    images = activations(relu=relu)
    images[:3] *= np.float32(outlier_factor / 12)
    largest = float(np.abs(images).max())
    counts, edges = np.histogram(np.abs(images), bins=2048, range=(0, largest))
    if relu:
        counts[0] = counts[1]  # every scale represents exact zeros
    both = np.concatenate([counts[::-1], counts]), np.concatenate([-edges[::-1], edges[1:]])
    ends = np.float32(-largest), np.float32(largest)
    collector = HistogramCollector("entropy", False, 2048, 128, 99.99, None)
    expected = float(collector.get_entropy_threshold((*both, *ends), 128)[1])
    ours = entropy(statistics(images), symmetric=True).high
    assert ours == pytest.approx(expected, rel=tolerance)
    assert ours < 0.9 * largest


def test_outlier_images_affect_the_maximum_but_not_the_quantile_over_images() -> None:
    images = activations()
    typical = images[3:]
    observed = statistics(images)

    def sqnr(name: str) -> float:
        chosen = CALIBRATORS[name](observed, symmetric=True)
        error = quantised(typical, chosen, symmetric=True) - typical
        ratio = np.square(typical).sum(1) / np.square(error).sum(1)
        return float(np.median(10 * np.log10(ratio)))

    assert sqnr("image-97") > sqnr("max") + 10
    assert sqnr("image-97") > sqnr("percentile-99.9")
