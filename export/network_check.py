"""The check of a network on its calibration images, before anything is computed from them.

Its batch norms tell if the images are like those of the training, and its predictions if the labels
are in the network's order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from resdeploy.bundle.batch_norm_shift import BatchNormShift, NormShift, summarise_norms
from resdeploy.bundle.manifest import ExportWarning
from resdeploy.calibration.image_set import draw
from resdeploy.errors import DataError, ImageError
from resdeploy.export.inputs import Source
from resdeploy.images.loading import load_image
from resdeploy.images.preprocessing import UInt8Array, pixel_count
from resdeploy.label_check import refuse_wrong_labels
from resdeploy.statistics import IntArray
from resdeploy.train.model.resnet import Classifier

# The time for an image grows with its pixels: 64 images of 224 pixels take 3 s on two cores.
MIN_IMAGES, MAX_IMAGES, CHECKED_PIXELS = 64, 512, 64 * 224 * 224
BATCH_PIXELS, MAX_BATCH = 16 * 224 * 224, 64
LARGEST = 1e9  # replaces NaN and infinity, which a manifest cannot hold


@dataclass(frozen=True, slots=True)
class NetworkCheck:
    """Behaviour of the FP32 network on calibration images."""

    shift: BatchNormShift | None
    """None if no batch norm has statistics, as in a new network or after quantised training."""
    predicted: IntArray
    """Predicted class of each image."""
    classes: IntArray | None
    """True class of each image; None if the classes are not known."""


class _NormInput:
    """Sums over the input of a batch norm, by channel, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)

    def __call__(self, _norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Means over the pixels of an image in float32 are exact enough, and fast.
        pixels = inputs[0].flatten(2)
        self.count += len(pixels)
        self.total = self.total + pixels.mean(2).double().sum(0)
        self.squares = self.squares + pixels.square().mean(2).double().sum(0)

    def shift(self, name: str, norm: nn.BatchNorm2d) -> NormShift:
        """Compare the sums with the statistics of `norm`."""
        recorded_mean, recorded_variance = norm.running_mean, norm.running_var
        assert recorded_mean is not None
        assert recorded_variance is not None
        mean = self.total / self.count
        variance = (self.squares / self.count - mean.square()).clamp(min=0) + norm.eps
        expected = recorded_variance.double() + norm.eps
        return NormShift(
            name=name,
            mean_shift=_median((mean - recorded_mean).abs() / expected.sqrt()),
            variance_octaves=_median((variance / expected).log2().abs()),
        )


def _median(values: Tensor) -> float:
    return float(values.nan_to_num(LARGEST, LARGEST).median())


def check_network(classifier: Classifier, source: Source, seed: int) -> NetworkCheck | None:
    """Run the network in PyTorch on calibration images; return None if none can be read."""
    pixels_each = pixel_count(source.preprocessing.image_size)
    wanted = int(np.clip(CHECKED_PIXELS // pixels_each, MIN_IMAGES, MAX_IMAGES))
    paths, pixels = list[Path](), list[UInt8Array]()
    for path in draw(source.pools.calibration, seed):
        with suppress(ImageError):  # the selection of calibration images reports it
            pixels.append(load_image(path, source.preprocessing))
            paths.append(path)
        if len(paths) == wanted:
            break
    if not paths:
        return None
    shift, logits = measure_shift(classifier, np.stack(pixels))
    classes = source.classes_of(paths)
    return NetworkCheck(
        shift, logits.argmax(axis=1), None if classes is None else np.array(classes)
    )


@torch.inference_mode()
def measure_shift(
    classifier: Classifier, images: UInt8Array
) -> tuple[BatchNormShift | None, np.ndarray]:
    """Return the shift of the batch norms on images (N, H, W, 3), and the logits (N, K)."""
    classifier = classifier.float().cpu().eval()
    inputs = {name: (norm, _NormInput()) for name, norm in _norms_with_statistics(classifier)}
    batch = int(np.clip(BATCH_PIXELS // pixel_count(images.shape[1:3]), 1, MAX_BATCH))
    with ExitStack() as hooks:
        for norm, sums in inputs.values():
            hooks.callback(norm.register_forward_pre_hook(sums).remove)
        parts = [images[start : start + batch] for start in range(0, len(images), batch)]
        logits = [classifier(torch.from_numpy(part)).numpy() for part in parts]
    norms = [sums.shift(name, norm) for name, (norm, sums) in inputs.items()]
    return summarise_norms(len(images), norms) if norms else None, np.concatenate(logits)


def shift_warnings(check: NetworkCheck | None) -> list[ExportWarning]:
    """Return a warning if the images are unlike those of the training."""
    if check is None or check.shift is None or check.shift.fits:
        return []
    return [
        ExportWarning(
            message="the calibration images are unlike those that the batch norms of the network "
            f"saw in training: {check.shift.figures}",
            hint="check --image-size, and that mean and std are those of the training; or give "
            "images like those of the training with --calibration-data; batch norms that were "
            "trained for fewer than about 50 steps never saw enough",
        )
    ]


def label_warnings(
    check: NetworkCheck | None, source: Source, *, labels_are_used: bool
) -> list[ExportWarning]:
    """Return a warning if the labels of the calibration images do not fit the network.

    Raises:
        DataError: They do not fit, and `labels_are_used`.
    """
    if check is None or check.classes is None:
        return []
    try:
        refuse_wrong_labels(check.classes, check.predicted, source.labels, "the calibration images")
    except DataError as error:
        if labels_are_used:
            hint = f"{error.hint}; images without class folders are not checked"
            raise DataError(str(error), hint) from error
        return [ExportWarning(message=str(error), hint=error.hint or "")]
    return []


def _norms_with_statistics(module: nn.Module) -> Iterator[tuple[str, nn.BatchNorm2d]]:
    """Yield name and module of each batch norm, except those with the initial statistics."""
    for name, norm in module.named_modules():
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        mean, variance = norm.running_mean, norm.running_var
        if mean is not None and variance is not None and (mean.any() or (variance != 1).any()):
            yield name.removeprefix("network."), norm
