"""Tests of scales and integers against ONNX's reference evaluator and by their definition."""

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
    QuantizationParameters,
    asymmetric_parameters,
    quantize_bias,
    quantize_weight,
    symmetric_parameters,
)
from resdeploy.errors import CalibrationError

# Larger activations are outside the range of float16.
ends = st.floats(-1e4, 1e4, width=32)
ranges = st.tuples(ends, ends).map(lambda pair: Range(low=min(pair), high=max(pair)))
weights = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 5)),
    elements=st.floats(-100, 100, width=32),
)


def onnx_round_trip(
    values: npt.NDArray[np.float32], parameters: QuantizationParameters, grid: type[np.generic]
) -> npt.NDArray[np.float32]:
    """Quantise and dequantise with ONNX's reference evaluator."""
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
            helper.make_tensor("scale", onnx.TensorProto.FLOAT, [], [float(parameters.scale)]),
            helper.make_tensor("zero", kind, [], [parameters.zero_point]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    (result,) = ReferenceEvaluator(model).run(None, {"x": values})
    return np.asarray(result, dtype=np.float32)


@given(ranges, st.booleans())
def test_symmetric_covers_the_range_without_clipping(chosen: Range, half: bool) -> None:
    parameters = symmetric_parameters(chosen, half=half)
    largest = max(abs(chosen.low), abs(chosen.high))
    assert parameters.zero_point == 0
    # Float32 rounds the scale by at most 2^-24 of itself; float16 scales are rounded up.
    assert float(parameters.scale) * INT8_MAX >= largest * (1 - 2**-23)


@given(ranges)
def test_a_half_scale_is_the_next_float16(chosen: Range) -> None:
    scale = symmetric_parameters(chosen, half=True).scale
    exact = max(max(abs(chosen.low), abs(chosen.high)) / INT8_MAX, SMALLEST_SCALE)
    assert np.float32(np.float16(scale)) == scale
    assert scale >= exact
    below = np.nextafter(np.float16(scale), np.float16(0))
    assert float(below) < exact


@given(ranges, st.integers(0, 2**31))
def test_asymmetric_error_is_at_most_one_step(chosen: Range, seed: int) -> None:
    parameters = asymmetric_parameters(chosen)
    generator = np.random.default_rng(seed)
    values = generator.uniform(chosen.low, chosen.high, 50).astype(np.float32)
    error = np.abs(onnx_round_trip(values, parameters, np.uint8) - values)
    # Rounding a value adds half a step, and rounding the zero point up to another half step at one
    # end of the range. The factor allows for float32 arithmetic.
    assert error.max() <= float(parameters.scale) * (1 + 1e-3)


@given(ranges)
def test_zero_is_exact(chosen: Range) -> None:
    zero = np.zeros(1, np.float32)
    assert onnx_round_trip(zero, asymmetric_parameters(chosen), np.uint8)[0] == 0
    assert onnx_round_trip(zero, symmetric_parameters(chosen, half=True), np.int8)[0] == 0


@given(ranges)
def test_zero_points_fit_their_type(chosen: Range) -> None:
    assert 0 <= asymmetric_parameters(chosen).zero_point <= UINT8_MAX


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"),
    [
        (0.0, 255.0, 1.0, 0),
        (-128.0, 127.0, 1.0, 128),
        (-255.0, 0.0, 1.0, 255),
        (3.0, 51.0, 0.2, 0),  # widened to include zero
        (-5.1, -1.0, 0.02, 255),
    ],
)
def test_known_asymmetric_grids(low: float, high: float, scale: float, zero_point: int) -> None:
    parameters = asymmetric_parameters(Range(low=low, high=high))
    assert float(parameters.scale) == pytest.approx(scale)
    assert parameters.zero_point == zero_point


@pytest.mark.parametrize("half", [False, True])
def test_a_zero_tensor_has_the_smallest_scale(half: bool) -> None:
    zero = Range(low=0, high=0)
    for parameters in (symmetric_parameters(zero, half=half), asymmetric_parameters(zero)):
        assert parameters.scale == SMALLEST_SCALE
        assert np.float16(parameters.scale) == parameters.scale


@given(weights, st.booleans())
def test_the_error_of_weights_is_at_most_half_a_step(
    weight: npt.NDArray[np.float32], half: bool
) -> None:
    integers, scales = quantize_weight(weight, half=half)
    assert integers.dtype == np.int8
    assert integers.min() >= -INT8_MAX
    restored = integers.astype(np.float64) * scales[:, None].astype(np.float64)
    # Half a step, plus the float32 rounding of the scale times 127.
    assert (np.abs(restored - weight) <= scales[:, None] * (0.5 + 127 * 2**-23)).all()


@given(weights)
def test_the_largest_weight_of_a_channel_is_127(weight: npt.NDArray[np.float32]) -> None:
    integers, scales = quantize_weight(weight, half=False)
    for channel, scale in zip(integers, scales):
        if scale > SMALLEST_SCALE:
            assert np.abs(channel.astype(int)).max() == INT8_MAX


def test_each_channel_has_its_own_scale() -> None:
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
def test_bias_scales_are_those_of_the_accumulator(
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
def test_an_invalid_range_is_rejected(low: float, high: float) -> None:
    with pytest.raises(CalibrationError, match="no finite interval"):
        Range(low=low, high=high)
