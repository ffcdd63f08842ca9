"""Fake quantisation with straight-through gradients.

The values are those of the exported graph: int8 from -127 to 127, zero point 0 and float16 scales.
A test compares them with `resdeploy.calibration.scales`, which training must not import.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

INT8_MAX = 127
MIN_SCALE = 2.0**-20  # the same as in `calibration.scales`


def round_up_to_float16(scale: Tensor) -> Tensor:
    """Return the smallest float16 value that is at least `scale` > 0, as float32."""
    scale = scale.clamp(min=MIN_SCALE)
    half = scale.half()
    above = (half.view(torch.int16) + 1).view(torch.float16)  # the next larger float16
    return torch.where(half.float() < scale, above, half).float()


def fake_quantize_weight(weight: Tensor) -> Tensor:
    """Quantise a weight (C, ...) per output channel, with straight-through gradients."""
    flat = weight.detach().flatten(1)
    scale = round_up_to_float16(flat.abs().amax(1) / INT8_MAX)[:, None]
    rounded = (flat / scale).round().clamp(-INT8_MAX, INT8_MAX) * scale
    return weight + (rounded.view_as(weight) - weight.detach())


def fake_quantize_activation(activation: Tensor, scale: Tensor) -> Tensor:
    """Quantise an activation with a learned scale, float32 ().

    Clipped values have no gradient. The gradient of the scale is damped, so that its relative
    change per step is similar to that of a weight.

    Source: Esser et al., "Learned Step Size Quantization" (2020), arXiv:1902.08153, equations 1 to
    3 and section 2.2.
    """
    quantized: Tensor = _LearnedStep.apply(activation, scale)  # type: ignore[no-untyped-call]
    return quantized


class _LearnedStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activation: Tensor, scale: Tensor) -> Tensor:
        step = round_up_to_float16(scale)
        ratio = activation / step
        integer = ratio.round().clamp_(-INT8_MAX, INT8_MAX)
        ctx.save_for_backward(ratio, integer)
        return integer * step

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = grad_outputs
        ratio, integer = ctx.saved_tensors
        inside = ratio.abs() <= INT8_MAX
        derivative = torch.where(inside, integer - ratio, integer)  # with respect to the scale
        damping = 1 / math.sqrt(ratio.numel() / len(ratio) * INT8_MAX)
        return gradient * inside, (gradient * derivative).sum() * damping
