"""Scales and integers, against ONNX's own reference evaluator and by their defining properties."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper
from onnx.reference import ReferenceEvaluator

from resdeploy.calibration.ranges import Range
from resdeploy.calibration.scales import (
    INT8_MAX,
    SMALLEST_SCALE,
    UINT8_MAX,
    Affine,
    asymmetric,
    quantize_bias,
    quantize_weight,
    symmetric,
)
from resdeploy.errors import CalibrationError

# Activations of networks that work lie far inside; larger ones do not fit float16 anyway.
ends = st.floats(-1e4, 1e4, width=32)
ranges = st.tuples(ends, ends).map(lambda pair: Range(low=min(pair), high=max(pair)))
weights = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 5)),
    elements=st.floats(-100, 100, width=32),
)


def onnx_round_trip(
    values: npt.NDArray[np.float32], affine: Affine, grid: type[np.generic]
) -> npt.NDArray[np.float32]:
    """Quantise and dequantise as the ONNX specification does."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(grid))
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ],
        "round_trip",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None])],
        [
            helper.make_tensor("scale", onnx.TensorProto.FLOAT, [], [float(affine.scale)]),
            helper.make_tensor("zero", kind, [], [affine.zero_point]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    (result,) = ReferenceEvaluator(model).run(None, {"x": values})
    return np.asarray(result, dtype=np.float32)


@given(ranges, st.booleans())
def test_symmetric_covers_the_range_without_clipping(chosen: Range, half: bool) -> None:
    affine = symmetric(chosen, half=half)
    largest = max(abs(chosen.low), abs(chosen.high))
    assert affine.zero_point == 0
    # Float32 rounds the scale by at most 2^-24 of itself; float16 scales are rounded up.
    assert float(affine.scale) * INT8_MAX >= largest * (1 - 2**-23)


@given(ranges)
def test_a_half_scale_is_a_float16_and_at_most_a_step_too_large(chosen: Range) -> None:
    scale = symmetric(chosen, half=True).scale
    exact = max(max(abs(chosen.low), abs(chosen.high)) / INT8_MAX, SMALLEST_SCALE)
    assert np.float32(np.float16(scale)) == scale
    assert scale >= exact
    below = np.nextafter(np.float16(scale), np.float16(0))
    assert float(below) < exact


@given(ranges, st.integers(0, 2**31))
def test_asymmetric_keeps_every_value_to_half_a_step(chosen: Range, seed: int) -> None:
    affine = asymmetric(chosen)
    generator = np.random.default_rng(seed)
    values = generator.uniform(chosen.low, chosen.high, 50).astype(np.float32)
    error = np.abs(onnx_round_trip(values, affine, np.uint8) - values)
    # Rounding to the grid: half a step. The zero point was itself rounded by up to half a step,
    # so that the last step at one end may be cut off: one step in all. Float32 adds little.
    assert error.max() <= 1.0 * float(affine.scale) * (1 + 1e-3)


@given(ranges)
def test_zero_is_exact(chosen: Range) -> None:
    zero = np.zeros(1, np.float32)
    assert onnx_round_trip(zero, asymmetric(chosen), np.uint8)[0] == 0
    assert onnx_round_trip(zero, symmetric(chosen, half=True), np.int8)[0] == 0


@given(ranges)
def test_zero_points_fit_their_type(chosen: Range) -> None:
    assert 0 <= asymmetric(chosen).zero_point <= UINT8_MAX


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"),
    [
        (0.0, 255.0, 1.0, 0),
        (-128.0, 127.0, 1.0, 128),
        (-255.0, 0.0, 1.0, 255),
        (3.0, 51.0, 0.2, 0),  # widened to hold zero
        (-5.1, -1.0, 0.02, 255),
    ],
)
def test_known_asymmetric_grids(low: float, high: float, scale: float, zero_point: int) -> None:
    affine = asymmetric(Range(low=low, high=high))
    assert float(affine.scale) == pytest.approx(scale)
    assert affine.zero_point == zero_point


@pytest.mark.parametrize("half", [False, True])
def test_a_dead_tensor_still_has_a_usable_scale(half: bool) -> None:
    for affine in (symmetric(Range(low=0, high=0), half=half), asymmetric(Range(low=0, high=0))):
        assert affine.scale == SMALLEST_SCALE
        assert np.float16(affine.scale) == affine.scale


@given(weights, st.booleans())
def test_weights_are_kept_to_half_a_step_per_channel(
    weight: npt.NDArray[np.float32], half: bool
) -> None:
    integers, scales = quantize_weight(weight, half=half)
    assert integers.dtype == np.int8
    assert integers.min() >= -INT8_MAX
    restored = integers.astype(np.float64) * scales[:, None].astype(np.float64)
    # Half a step, and what float32 lost of the scale, 127 steps away from zero.
    assert (np.abs(restored - weight) <= scales[:, None] * (0.5 + 127 * 2**-23)).all()


@given(weights)
def test_the_largest_weight_of_a_channel_uses_the_whole_grid(
    weight: npt.NDArray[np.float32],
) -> None:
    integers, scales = quantize_weight(weight, half=False)
    for channel, scale in zip(integers, scales):
        if scale > SMALLEST_SCALE:
            assert np.abs(channel.astype(int)).max() == INT8_MAX


def test_channels_do_not_share_a_scale() -> None:
    weight = np.array([[1.0, -2.0], [100.0, 50.0]], dtype=np.float32)
    integers, scales = quantize_weight(weight, half=False)
    np.testing.assert_array_equal(integers, [[64, -127], [127, 64]])
    np.testing.assert_allclose(scales, [2 / 127, 100 / 127], rtol=1e-7)


def test_convolution_weights_keep_their_shape() -> None:
    weight = np.random.default_rng(0).normal(size=(8, 4, 3, 3)).astype(np.float32)
    integers, scales = quantize_weight(weight, half=True)
    assert integers.shape == weight.shape
    assert scales.shape == (8,)


@given(
    hnp.arrays(np.float32, 4, elements=st.floats(-1e3, 1e3, width=32)),
    st.floats(2**-13, 10, width=32),
    hnp.arrays(np.float32, 4, elements=st.floats(2**-13, 1, width=32)),
)
def test_bias_lies_on_the_accumulators_grid(
    bias: npt.NDArray[np.float32], input_scale: float, weight_scales: npt.NDArray[np.float32]
) -> None:
    integers, scales = quantize_bias(bias, np.float32(input_scale), weight_scales)
    assert integers.dtype == np.int32
    np.testing.assert_array_equal(scales, np.float32(input_scale) * weight_scales)
    clipped = np.abs(bias / scales.astype(np.float64)) > 2**31 - 1
    error = np.abs(integers * scales.astype(np.float64) - bias)
    assert (error[~clipped] <= 0.5001 * scales[~clipped]).all()


def test_a_bias_beyond_32_bits_is_clipped() -> None:
    integers, _ = quantize_bias(
        np.array([1e9, -1e9], np.float32), np.float32(1e-3), np.array([1e-3, 1e-3], np.float32)
    )
    np.testing.assert_array_equal(integers, [2**31 - 1, -(2**31)])


# Ranges


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 0.0), (math.nan, 1.0), (0.0, math.nan), (-math.inf, 0.0), (0, math.inf)]
)
def test_a_range_that_is_none_is_refused(low: float, high: float) -> None:
    with pytest.raises(CalibrationError):
        Range(low=low, high=high)
