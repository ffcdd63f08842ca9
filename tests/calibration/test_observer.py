"""Tests of the observer on a graph that is small enough to compute by hand."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

from resdeploy.calibration.observer import observe
from resdeploy.errors import CalibrationError
from resdeploy.images.preprocessing import UInt8Array

# `centred` is pixels - 100, `inverse` is 1 / centred, which is infinite where a pixel is 100.
GRAPH = onnx.parser.parse_model("""
<ir_version: 9, opset_import: ["" : 20]>
small (uint8[N,2,2,3] images) => (float[N,2,2,3] centred, float[N,2,2,3] inverse)
<float hundred = {100.0}, float one = {1.0}>
{
   pixels = Cast<to = 1>(images)
   centred = Sub(pixels, hundred)
   inverse = Div(one, centred)
}
""").SerializeToString()


def images(*values: int) -> UInt8Array:
    return np.stack([np.full((2, 2, 3), value, np.uint8) for value in values])


def test_extremes_are_kept_per_image_in_order() -> None:
    batches = [images(0, 150), images(255)]
    batches[0][0, 0, 0, 0] = 200
    statistics = observe(GRAPH, ["centred"], batches)["centred"]
    np.testing.assert_array_equal(statistics.lows, [-100, 50, 155])
    np.testing.assert_array_equal(statistics.highs, [100, 50, 155])
    assert statistics.lows.dtype == np.float32


def test_batches_are_iterated_once() -> None:
    yielded = []

    def batches() -> object:
        for value in (1, 2, 3):
            yielded.append(value)
            yield images(value)

    statistics = observe(GRAPH, ["centred", "inverse"], batches())  # type: ignore[arg-type]
    assert yielded == [1, 2, 3]
    assert set(statistics) == {"centred", "inverse"}


def test_the_size_of_the_batches_does_not_matter() -> None:
    pictures = np.random.default_rng(0).integers(0, 99, (7, 2, 2, 3), dtype=np.uint8)
    whole = observe(GRAPH, ["inverse"], [pictures])["inverse"]
    parts = observe(GRAPH, ["inverse"], [pictures[:3], pictures[3:4], pictures[4:]])["inverse"]
    np.testing.assert_array_equal(whole.lows, parts.lows)
    np.testing.assert_array_equal(whole.highs, parts.highs)


def test_an_infinite_activation_is_an_error_that_names_the_tensor() -> None:
    with pytest.raises(CalibrationError, match="activation inverse is NaN or infinite"):
        observe(GRAPH, ["centred", "inverse"], [images(1), images(100)])


def test_no_images_are_an_error() -> None:
    with pytest.raises(CalibrationError, match="no calibration images"):
        observe(GRAPH, ["centred"], [])
