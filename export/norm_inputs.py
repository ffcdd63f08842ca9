"""The inputs of a network's batch norms on images, compared with the statistics of the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn

from resdeploy.bundle.batch_norm_shift import NormShift
from resdeploy.images.preprocessing import UInt8Array, pixel_count
from resdeploy.train.model.resnet import Classifier

BATCH_PIXELS, MAX_BATCH = 16 * 224 * 224, 64
LARGEST = 1e9  # replaces NaN and infinity, which a manifest cannot hold


class NormInput:
    """Sums over the input of a batch norm, by channel, in float64."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        # Not copied, because the search for a pre-processing keeps many of these.
        self.recorded_mean, self._running_var = norm.running_mean, norm.running_var
        self.eps = norm.eps
        self.count = self.pixels = 0
        self.total = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)

    @property
    def recorded_variance(self) -> Tensor:
        return self._running_var.double() + self.eps

    def __call__(self, _norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Means over the pixels of an image in float32 are exact enough, and fast.
        pixels = inputs[0].flatten(2)
        self.count += len(pixels)
        self.pixels += len(pixels) * pixels.shape[2]
        self.total = self.total + pixels.mean(2).double().sum(0)
        self.squares = self.squares + pixels.square().mean(2).double().sum(0)

    def compare(self, mean: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distance of means in recorded deviations, and the ratio of the variances.

        Args:
            mean: Mean of the values over images and pixels, (..., C).
            squares: Mean of their squares, (..., C).
        """
        variance = (squares - mean.square()).clamp(min=0) + self.eps
        distance = (mean - self.recorded_mean).abs() / self.recorded_variance.sqrt()
        return distance, variance / self.recorded_variance

    def shift(self, name: str) -> NormShift:
        """Compare the sums with the statistics of the norm."""
        distance, ratio = self.compare(self.total / self.count, self.squares / self.count)
        return NormShift(
            name=name,
            mean_shift=_median(distance),
            variance_octaves=_median(ratio.log2().abs()),
        )


def _median(values: Tensor) -> float:
    return float(values.nan_to_num(LARGEST, LARGEST).median())


@torch.inference_mode()
def record_norm_inputs(
    classifier: Classifier, images: UInt8Array, *, training: bool = False
) -> tuple[dict[str, NormInput], np.ndarray]:
    """Return the sums at each batch norm for uint8 images (N, H, W, 3), and the logits (N, K).

    With `training`, all images are one batch, and each norm uses its statistics, as in training:
    the inputs of one norm do not depend on what those before it recorded then.
    """
    classifier = classifier.float().cpu().eval()
    norms = dict(norms_with_statistics(classifier))
    inputs = {name: NormInput(norm) for name, norm in norms.items()}
    batch = int(np.clip(BATCH_PIXELS // pixel_count(images.shape[1:3]), 1, MAX_BATCH))
    if training:
        batch = len(images)
    with ExitStack() as hooks:
        for name, norm in norms.items():
            hooks.callback(norm.register_forward_pre_hook(inputs[name]).remove)
            norm.train(training).track_running_stats = not training  # False: records nothing
        parts = [images[start : start + batch] for start in range(0, len(images), batch)]
        logits = [classifier(torch.from_numpy(part)).numpy() for part in parts]
    return inputs, np.concatenate(logits)


def norms_with_statistics(module: nn.Module) -> Iterator[tuple[str, nn.BatchNorm2d]]:
    """Yield name and module of each batch norm, except those with the initial statistics."""
    for name, norm in module.named_modules():
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        mean, variance = norm.running_mean, norm.running_var
        if mean is not None and variance is not None and (mean.any() or (variance != 1).any()):
            yield name.removeprefix("network."), norm
