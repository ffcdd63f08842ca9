"""Mixup and CutMix: a batch mixed with itself in another order, labels and all.

Sources: Zhang, Cisse, Dauphin, Lopez-Paz, "mixup" (2017), arXiv:1710.09412, section 2; Yun et al.,
"CutMix" (2019), arXiv:1905.04899, section 3.1 and algorithm A1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Mixed:
    """Images that show `share` of one class and the rest of another."""

    images: Tensor
    """(N, H, W, 3), uint8 as before."""
    labels: Tensor
    others: Tensor
    share: float
    """Of `labels`, from 0 to 1; 1 where nothing was mixed."""


def mix(
    images: Tensor, labels: Tensor, mixup: float, cutmix: float, generator: np.random.Generator
) -> Mixed:
    """Mix a batch by one of the two methods; where both are on, either is as likely.

    Args:
        images: uint8 (N, H, W, 3), on any device.
        labels: int64 (N,).
        mixup: Parameter of mixup's Beta distribution; 0: off.
        cutmix: The same of CutMix.
        generator: Decides on method, share, order and place.
    """
    if not mixup and not cutmix:
        return Mixed(images, labels, labels, 1.0)
    # Without a wait: a GPU is still at the step before, and has to be given work meanwhile.
    order = torch.from_numpy(generator.permutation(len(labels)))
    order = order.to(labels.device, non_blocking=True)
    use_cutmix = bool(cutmix) and (not mixup or generator.random() < 0.5)
    alpha = cutmix if use_cutmix else mixup
    share = float(generator.beta(alpha, alpha))
    if use_cutmix:
        mixed, share = _paste(images, images[order], share, generator)
    else:
        blended = images.float().mul_(share).add_(images[order].float(), alpha=1 - share)
        mixed = blended.round_().to(torch.uint8)
    return Mixed(mixed, labels, labels[order], share)


def _paste(
    images: Tensor, others: Tensor, share: float, generator: np.random.Generator
) -> tuple[Tensor, float]:
    """`images` with a part of `others` in them; and the share that is left of `images`."""
    height, width = images.shape[1:3]
    side = math.sqrt(1 - share)
    row, column = generator.integers(height), generator.integers(width)
    top, bottom = (_clip(row + sign * height * side / 2, height) for sign in (-1, 1))
    left, right = (_clip(column + sign * width * side / 2, width) for sign in (-1, 1))
    mixed = images.clone()
    mixed[:, top:bottom, left:right] = others[:, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _clip(edge: float, limit: int) -> int:
    return min(max(round(edge), 0), limit)
