"""Scales and zero points from ranges, and integers from weights and biases.

real = scale * (integer - zero point), as defined by ONNX QuantizeLinear-19 and DequantizeLinear-19,
https://github.com/onnx/onnx/blob/v1.18.0/docs/Operators.md#QuantizeLinear
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from resdeploy.calibration.ranges import Range

INT8_MAX = 127  # -128 is not used, so that the grid is symmetric around zero
UINT8_MAX = 255
# Float16 has full precision from 2^-14; smaller values are multiples of 2^-24. At 2^-20, rounding
# changes a scale by at most 1/16; smaller scales would be too imprecise.
SMALLEST_SCALE = 2.0**-20

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationParameters:
    """Scale and zero point of a quantised activation."""

    scale: np.float32
    zero_point: int


def symmetric_parameters(chosen: Range, *, half: bool) -> QuantizationParameters:
    """Return the parameters with which int8 -127..127 covers the larger end of a range.

    With `half`, the scale is rounded up to a float16 value.
    """
    largest = np.array([max(abs(chosen.low), abs(chosen.high))])
    scale = round_scales(largest / INT8_MAX, half=half)[0]
    return QuantizationParameters(scale=scale, zero_point=0)


def asymmetric_parameters(chosen: Range) -> QuantizationParameters:
    """Return the parameters with which uint8 0..255 covers a range, widened to include zero.

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference" (2017), arXiv:1712.05877, section 2.1.
    """
    covered = chosen.with_zero()
    steps = np.array([(covered.high - covered.low) / UINT8_MAX])
    scale = round_scales(steps, half=False)[0]
    zero_point = int(np.clip(round(-covered.low / float(scale)), 0, UINT8_MAX))
    return QuantizationParameters(scale=scale, zero_point=zero_point)


def quantize_weight(
    weight: Float32Array, *, half: bool
) -> tuple[npt.NDArray[np.int8], Float32Array]:
    """Return the symmetric int8 integers of a weight (C, ...) and a scale per channel, (C,).

    With `half`, the scales are rounded up to float16 values before the integers are computed.
    """
    flat = weight.reshape(len(weight), -1).astype(np.float64)
    scales = round_scales(np.abs(flat).max(axis=1) / INT8_MAX, half=half)
    integers = np.clip(np.rint(flat / scales[:, None]), -INT8_MAX, INT8_MAX).astype(np.int8)
    return integers.reshape(weight.shape), scales


def quantize_bias(
    bias: Float32Array, input_scale: np.float32, weight_scales: Float32Array
) -> tuple[npt.NDArray[np.int32], Float32Array]:
    """Return the integers (C,) of a bias, clipped to 32 bits, and the scales of the accumulator.

    The accumulator of a channel has the scale of the input times the scale of the weights.
    """
    scales = (input_scale * weight_scales).astype(np.float32)
    limits = np.iinfo(np.int32)
    integers = np.clip(np.rint(bias.astype(np.float64) / scales), limits.min, limits.max)
    return integers.astype(np.int32), scales


def round_scales(exact: npt.NDArray[np.float64], *, half: bool) -> Float32Array:
    """Return scales, at least `SMALLEST_SCALE`, as float32 or rounded up to float16 values.

    Scales beyond the range of float16 become infinite.
    """
    exact = np.maximum(exact, SMALLEST_SCALE)
    if not half:
        return exact.astype(np.float32)
    with np.errstate(over="ignore"):
        rounded = exact.astype(np.float16)
    # Round up, because a smaller scale would clip the largest value.
    raised = np.where(rounded < exact, np.nextafter(rounded, np.float16(np.inf)), rounded)
    return raised.astype(np.float32)
