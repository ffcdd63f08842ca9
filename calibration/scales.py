"""From a range to a scale and a zero point, and from weights to integers.

real = scale * (integer - zero point), as ONNX QuantizeLinear-19 and DequantizeLinear-19 define,
https://github.com/onnx/onnx/blob/v1.18.0/docs/Operators.md#QuantizeLinear
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from resdeploy.calibration.ranges import Range

INT8_MAX = 127  # -128 stays unused, so that the grid is symmetric around zero
UINT8_MAX = 255
# A scale in float16 has full precision from 2^-14; below, steps of 2^-24 make it coarser. At
# 2^-20 such a step is a sixteenth of the scale; smaller scales would be more step than scale.
SMALLEST_SCALE = 2.0**-20

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
    """Scale and zero point of an activation."""

    scale: np.float32
    zero_point: int


def symmetric(chosen: Range, *, half: bool) -> Affine:
    """For int8 -127..127: the larger end of the range decides, zero stays zero.

    Args:
        chosen: The range to cover.
        half: Round the scale up to a float16, because the graph will hold it as one.
    """
    largest = np.array([max(abs(chosen.low), abs(chosen.high))])
    return Affine(scale=_scale(largest / INT8_MAX, half=half)[0], zero_point=0)


def asymmetric(chosen: Range) -> Affine:
    """For uint8 0..255: the range, widened to hold zero exactly, fills all steps.

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference" (2017), arXiv:1712.05877, section 2.1.
    """
    low, high = min(chosen.low, 0.0), max(chosen.high, 0.0)
    scale = _scale(np.array([(high - low) / UINT8_MAX]), half=False)[0]
    return Affine(scale=scale, zero_point=int(np.clip(round(-low / float(scale)), 0, UINT8_MAX)))


def quantize_weight(
    weight: Float32Array, *, half: bool
) -> tuple[npt.NDArray[np.int8], Float32Array]:
    """A weight (C, ...) as int8, symmetric, one scale per output channel C.

    Returns:
        The integers, shape of `weight`, and the scales (C,). The scales are what the graph will
        hold (float16 values with `half`), and the integers were rounded with exactly those.
    """
    flat = weight.reshape(len(weight), -1).astype(np.float64)
    scales = _scale(np.abs(flat).max(axis=1) / INT8_MAX, half=half)
    integers = np.clip(np.rint(flat / scales[:, None]), -INT8_MAX, INT8_MAX).astype(np.int8)
    return integers.reshape(weight.shape), scales


def quantize_bias(
    bias: Float32Array, input_scale: np.float32, weight_scales: Float32Array
) -> tuple[npt.NDArray[np.int32], Float32Array]:
    """A bias (C,) as int32 on the accumulator's own grid, input scale times weight scale.

    A channel whose bias does not fit 32 bits on that grid is clipped to the largest integer.
    """
    scales = (input_scale * weight_scales).astype(np.float32)
    limits = np.iinfo(np.int32)
    integers = np.clip(np.rint(bias.astype(np.float64) / scales), limits.min, limits.max)
    return integers.astype(np.int32), scales


def _scale(exact: npt.NDArray[np.float64], *, half: bool) -> Float32Array:
    exact = np.maximum(exact, SMALLEST_SCALE)
    if not half:
        return exact.astype(np.float32)
    rounded = exact.astype(np.float16)
    # Upwards, or the largest value would fall outside the grid and be clipped.
    raised = np.where(rounded < exact, np.nextafter(rounded, np.float16(np.inf)), rounded)
    return raised.astype(np.float32)
