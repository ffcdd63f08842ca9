"""Mixup and CutMix, which mix a batch with a shuffled copy of itself.

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
class MixedBatch:
    """A batch of images that each show two classes."""

    images: Tensor
    """Pixels, uint8 (N, H, W, 3)."""
    labels: Tensor
    """First class of each image, int64 (N,)."""
    other_labels: Tensor
    """Second class of each image, int64 (N,)."""
    share: float
    """Weight of `labels`, from 0 to 1; 1 if nothing was mixed."""


def mix_batch(
    images: Tensor, labels: Tensor, mixup: float, cutmix: float, generator: np.random.Generator
) -> MixedBatch:
    """Mix a batch by mixup or CutMix; if both are enabled, both are equally likely.

    Args:
        images: Pixels, uint8 (N, H, W, 3), on any device.
        labels: Class numbers, int64 (N,).
        mixup: Parameter of mixup's Beta distribution; 0 disables mixup.
        cutmix: Parameter of CutMix's Beta distribution; 0 disables CutMix.
        generator: Source of randomness.
    """
    if not mixup and not cutmix:
        return MixedBatch(images, labels, labels, 1.0)
    order = torch.from_numpy(generator.permutation(len(labels)))
    # Not blocking, so that work can be queued while the GPU still computes the previous step.
    order = order.to(labels.device, non_blocking=True)
    use_cutmix = bool(cutmix) and (not mixup or generator.random() < 0.5)
    alpha = cutmix if use_cutmix else mixup
    share = float(generator.beta(alpha, alpha))
    if use_cutmix:
        mixed, share = _paste(images, images[order], share, generator)
    else:
        blended = images.float().mul_(share).add_(images[order].float(), alpha=1 - share)
        mixed = blended.round_().to(torch.uint8)
    return MixedBatch(mixed, labels, labels[order], share)


def _paste(
    images: Tensor, others: Tensor, share: float, generator: np.random.Generator
) -> tuple[Tensor, float]:
    """Return `images` with a rectangle of `others`, and the fraction of `images` that is left."""
    height, width = images.shape[1:3]
    side = math.sqrt(1 - share)
    top, bottom = _random_span(height, side, generator)
    left, right = _random_span(width, side, generator)
    mixed = images.clone()
    mixed[:, top:bottom, left:right] = others[:, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _random_span(length: int, fraction: float, generator: np.random.Generator) -> tuple[int, int]:
    """Return the start and end of a span around a random centre, cut off at the edges."""
    centre = generator.integers(length)
    first, last = (round(centre + sign * length * fraction / 2) for sign in (-1, 1))
    return max(first, 0), min(last, length)
