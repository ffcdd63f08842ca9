"""Tests of the calibration cache, one of them with lines that TensorRT wrote."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdeploy.bundle.bundle import CALIBRATION_CACHE, Bundle
from resdeploy.bundle.manifest import Encoding
from resdeploy.calibration.ranges import Range
from resdeploy.calibration.tensorrt_cache import write_cache
from resdeploy.export.quantization.recipe import read_recipe

names = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1)


def read_cache(data: bytes) -> dict[str, float]:
    """Return the scales by tensor name."""
    header, *lines = data.decode().splitlines()
    assert header.startswith("TRT-")
    parts = [line.rsplit(": ", 1) for line in lines]
    return {tensor: struct.unpack(">f", bytes.fromhex(digits))[0] for tensor, digits in parts}


@given(st.dictionaries(names, st.floats(1e-3, 1e4)))
def test_scales_are_read_back(highs: dict[str, float]) -> None:
    ranges = {tensor: Range(low=-high / 2, high=high) for tensor, high in highs.items()}
    scales = read_cache(write_cache(ranges))
    assert set(scales) == set(ranges)
    for tensor, high in highs.items():
        assert scales[tensor] == pytest.approx(high / 127, rel=2**-23)  # a float32


def test_the_format_is_that_of_a_cache_that_tensorrt_wrote() -> None:
    # Lines of a cache that TensorRT 8.2.5 wrote for inputs from -0.5 to 0.5.
    scales = read_cache(
        b"TRT-8205-EntropyCalibration2\ninput: 3b810a13\nonnx::Conv_329: 3c96d93c\n"
    )
    assert scales["input"] * 127 == pytest.approx(0.5, rel=1e-3)
    assert scales["onnx::Conv_329"] == pytest.approx(0.018414, rel=1e-4)


def test_the_bundles_cache_holds_the_scales_of_its_graph(tiny_bundle: Bundle) -> None:
    scales = read_cache(tiny_bundle.read(CALIBRATION_CACHE))
    ranges = read_recipe(tiny_bundle, Encoding.TENSORRT).ranges
    assert set(scales) == set(ranges)
    for tensor, chosen in ranges.items():
        assert math.isclose(
            scales[tensor] * 127, max(-chosen.low, chosen.high, 127 * 2**-20), rel_tol=1e-6
        )
