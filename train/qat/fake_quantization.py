"""Quantisation that stays in floats and lets gradients through: to train with its errors.

The grids are those of the exported graph: int8 from -127 to 127, zero point 0, scales that a
float16 holds. `tests/train` holds them against `resdeploy.calibration.scales`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

INT8_MAX = 127
SMALLEST_SCALE = 2.0**-20  # as in `calibration.scales`


def half_up(scale: Tensor) -> Tensor:
    """The smallest float16 that is not below `scale`, as float32; both > 0."""
    scale = scale.clamp(min=SMALLEST_SCALE)
    half = scale.half()
    above = (half.view(torch.int16) + 1).view(torch.float16)  # of positive numbers: the next one
    return torch.where(half.float() < scale, above, half).float()


def quantize_weight(weight: Tensor) -> Tensor:
    """A weight (C, ...) on the grids of its output channels; gradients pass as if it were not."""
    flat = weight.detach().flatten(1)
    scale = half_up(flat.abs().amax(1) / INT8_MAX)[:, None]
    rounded = (flat / scale).round().clamp(-INT8_MAX, INT8_MAX) * scale
    return weight + (rounded.view_as(weight) - weight.detach())


def quantize_activation(activation: Tensor, scale: Tensor) -> Tensor:
    """An activation on the grid of `scale`, float32 (), which learns.

    What is clipped has no gradient; the scale's is damped so that it moves, in proportion, like a
    weight.

    Source: Esser et al., "Learned Step Size Quantization" (2020), arXiv:1902.08153, equations 1 to
    3 and section 2.2.
    """
    quantized: Tensor = _Learned.apply(activation, scale)  # type: ignore[no-untyped-call]
    return quantized


class _Learned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activation: Tensor, scale: Tensor) -> Tensor:
        step = half_up(scale)
        ratio = activation / step
        integer = ratio.round().clamp_(-INT8_MAX, INT8_MAX)
        ctx.save_for_backward(ratio, integer)
        return integer * step

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = grad_outputs
        ratio, integer = ctx.saved_tensors
        inside = ratio.abs() <= INT8_MAX
        moves = torch.where(inside, integer - ratio, integer)
        damping = 1 / math.sqrt(ratio.numel() / len(ratio) * INT8_MAX)
        return gradient * inside, (gradient * moves).sum() * damping
