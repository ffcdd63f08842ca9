"""Calibrators against NumPy on the values themselves, and against ONNX Runtime's own."""

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
    """Of activations (images, values)."""
    histogram = Histogram()
    histogram.add(images)
    return TensorStatistics(lows=images.min(axis=1), highs=images.max(axis=1), histogram=histogram)


def activations(seed: int = 0, images: int = 200, *, relu: bool = True) -> Images:
    """Bell-shaped, and a few images in which everything is many times larger."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(images, 500)) * generator.lognormal(0, 0.3, (images, 1))
    values[:3] *= 12
    return np.asarray(np.maximum(values, 0) if relu else values, dtype=np.float32)


def quantised(values: Images, chosen: Range, *, symmetric: bool) -> npt.NDArray[np.float64]:
    """Rounded and clipped in float64: a definition that shares nothing with the calibrators."""
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
def test_ranges_are_within_what_was_seen(
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
def test_tensors_with_hardly_any_values(name: str, values: list[float]) -> None:
    images = np.array([values], np.float32)
    chosen = CALIBRATORS[name](statistics(images), symmetric=True)
    assert chosen.low <= max(values)
    assert np.isfinite([chosen.low, chosen.high]).all()


def test_max_keeps_everything() -> None:
    images = activations(relu=False)
    chosen = max_range(statistics(images), symmetric=True)
    assert (chosen.low, chosen.high) == (float(images.min()), float(images.max()))


@pytest.mark.parametrize("share", [95, 97, 99])
def test_image_quantiles_are_numpys(share: int) -> None:
    images = activations(relu=False)
    chosen = CALIBRATORS[f"image-{share}"](statistics(images), symmetric=True)
    assert chosen.high == pytest.approx(np.percentile(images.max(1), share))
    assert chosen.low == pytest.approx(np.percentile(images.min(1), 100 - share))


@pytest.mark.parametrize("share", [99.9, 99.99, 99.999])
@pytest.mark.parametrize("relu", [True, False])
def test_percentiles_are_numpys_to_a_bin(share: float, relu: bool) -> None:
    images = activations(images=203, relu=relu)  # so that no share is a whole number of values
    seen = statistics(images)
    chosen = CALIBRATORS[f"percentile-{share:g}"](seen, symmetric=True)
    for ours, exact in (
        (chosen.high, np.percentile(images, share, method="inverted_cdf")),
        (chosen.low, -np.percentile(-images, share, method="inverted_cdf")),
    ):
        assert ours == pytest.approx(float(exact), abs=seen.histogram.width)  # the value's bin


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_mse_is_close_to_the_best_of_all_clips(symmetric: bool, relu: bool) -> None:
    images = activations(relu=relu)

    def error(chosen: Range) -> float:
        return float(np.square(quantised(images, chosen, symmetric=symmetric) - images).sum())

    seen = statistics(images)
    low, high = min(seen.extremes.low, 0.0), seen.extremes.high
    best = min(error(Range(low=s * low, high=s * high)) for s in np.linspace(0.02, 1, 400))
    # Rounding noise is modelled, not counted, and clips are tried in steps of 2 %.
    assert error(mse(seen, symmetric=symmetric)) <= 1.1 * best
    assert error(mse(seen, symmetric=symmetric)) < error(max_range(seen, symmetric=symmetric))


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    # Where a few images lie far out the divergence is flat over a wide range of clips, and other
    # bins, other steps between clips and another rule for empty bins move its minimum.
    ("odd", "tolerance"),
    [(1.0, 0.1), (12.0, 0.5)],
)
def test_entropy_clips_where_onnx_runtime_does(relu: bool, odd: float, tolerance: float) -> None:
    images = activations(relu=relu)
    images[:3] *= np.float32(odd / 12)
    largest = float(np.abs(images).max())
    counts, edges = np.histogram(np.abs(images), bins=2048, range=(0, largest))
    if relu:
        counts[0] = counts[1]  # exact zeros need no steps
    both = np.concatenate([counts[::-1], counts]), np.concatenate([-edges[::-1], edges[1:]])
    ends = np.float32(-largest), np.float32(largest)
    collector = HistogramCollector("entropy", False, 2048, 128, 99.99, None)
    peer = float(collector.get_entropy_threshold((*both, *ends), 128)[1])
    ours = entropy(statistics(images), symmetric=True).high
    assert ours == pytest.approx(peer, rel=tolerance)
    assert ours < 0.9 * largest


def test_odd_images_spoil_the_maximum_but_not_the_quantile_over_images() -> None:
    images = activations()
    usual = images[3:]
    seen = statistics(images)

    def noise(name: str) -> float:
        chosen = CALIBRATORS[name](seen, symmetric=True)
        ratio = np.square(usual).sum(1) / np.square(
            quantised(usual, chosen, symmetric=True) - usual
        ).sum(1)
        return float(np.median(10 * np.log10(ratio)))

    assert noise("image-97") > noise("max") + 10
    assert noise("image-97") > noise("percentile-99.9")
