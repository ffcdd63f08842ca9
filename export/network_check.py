"""The check of a network on its calibration images, before anything is computed from them.

Its batch norms tell if the images are like those of the training, and its predictions if the labels
are in the network's order.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from resdeploy.bundle.batch_norm_shift import BatchNormShift, summarise_norms
from resdeploy.bundle.manifest import ExportWarning
from resdeploy.bundle.quality import NO_BETTER
from resdeploy.calibration.image_set import draw
from resdeploy.errors import DataError, ImageError
from resdeploy.export.inputs import Source
from resdeploy.export.norm_inputs import record_norm_inputs
from resdeploy.export.source.network import ReferenceClassifier, TorchClassifier
from resdeploy.images.loading import load_image
from resdeploy.images.preprocessing import UInt8Array, pixel_count, size_text, usual_fraction
from resdeploy.images.preprocessing_choice import ASSUMED, resize_for
from resdeploy.label_check import check_labels, refuse_wrong_labels
from resdeploy.statistics import IntArray
from resdeploy.tables import plural
from resdeploy.train.checkpoint.run import RunDocument
from resdeploy.train.doubts import REMEDIES
from resdeploy.train.model.resnet import Classifier

logger = logging.getLogger(__name__)

# The time for an image grows with its pixels: 64 images of 224 pixels take 3 s on two cores.
MIN_IMAGES, MAX_IMAGES, CHECKED_PIXELS = 64, 512, 64 * 224 * 224
# Usual sizes in training, in pixels, that are compared with an assumed one. The largest takes a
# third of the time of 224 pixels.
TRIED_SIZES = (32, 64, 96, 128)


@dataclass(frozen=True, slots=True)
class NetworkCheck:
    """Behaviour of the FP32 network on calibration images."""

    shift: BatchNormShift | None
    """None if no batch norm has statistics, as in a new network, after quantised training, or in
    an ONNX file, whose batch norms are folded."""
    predicted: IntArray
    """Predicted class of each image."""
    classes: IntArray | None
    """True class of each image; None if the classes are not known."""
    images: Mapping[Path, UInt8Array]
    """The decoded images by their files."""


def check_network(
    classifier: ReferenceClassifier, source: Source, seed: int
) -> NetworkCheck | None:
    """Run the network on calibration images; return None if none can be read."""
    pixels_each = pixel_count(source.preprocessing.image_size)
    wanted = int(np.clip(CHECKED_PIXELS // pixels_each, MIN_IMAGES, MAX_IMAGES))
    images = dict[Path, UInt8Array]()
    for path in draw(source.pools.calibration, seed):
        with suppress(ImageError):  # the selection of calibration images reports it
            images[path] = load_image(path, source.preprocessing)
        if len(images) == wanted:
            break
    if not images:
        return None
    pixels, shift = np.stack(list(images.values())), None
    if isinstance(classifier, TorchClassifier):
        shift, logits = measure_shift(classifier.module, pixels)
        is_assumed = source.choice.origins["image_size"] == ASSUMED
        if is_assumed and shift is not None and shift.mean_shift > shift.mean_limit:
            _warn_of_size(classifier.module, source, list(images))
    else:
        logits = classifier.logits(pixels)
    classes = source.classes_of(list(images))
    return NetworkCheck(
        shift, logits.argmax(axis=1), None if classes is None else np.array(classes), images
    )


def _warn_of_size(classifier: Classifier, source: Source, files: Sequence[Path]) -> None:
    """Log a warning with the size of `TRIED_SIZES` that the batch norms' means fit best, if any."""
    fitting = dict[float, int]()
    for size in TRIED_SIZES:
        resize = resize_for(size, usual_fraction(size))
        other = replace(source.preprocessing, image_size=size, resize=resize)
        images = np.stack([load_image(file, other) for file in files])
        found, _ = measure_shift(Classifier(classifier.network, other), images)
        if found is not None and found.mean_shift <= found.mean_limit:
            fitting[found.mean_shift] = size
    if fitting:
        logger.warning(
            "the batch norms contradict the assumed %s pixels, and fit %d: stop this work, and "
            "repeat it with --image-size %d",
            size_text(source.preprocessing.image_size), *[fitting[min(fitting)]] * 2,
        )  # fmt: skip


def measure_shift(
    classifier: Classifier, images: UInt8Array
) -> tuple[BatchNormShift | None, np.ndarray]:
    """Return the shift of the batch norms on images (N, H, W, 3), and the logits (N, K)."""
    inputs, logits = record_norm_inputs(classifier, images)
    norms = [sums.shift(name) for name, sums in inputs.items()]
    return summarise_norms(len(images), norms) if norms else None, logits


def shift_warnings(check: NetworkCheck | None, source: Source) -> list[ExportWarning]:
    """Return a warning if the inputs of the batch norms differ from those in training."""
    if check is None or check.shift is None or check.shift.fits:
        return []
    message = "the inputs of the batch norms differ from those in training"
    hint = "check --image-size, and that mean and std are those of the training; or give images "
    hint += "like those of the training with --calibration-data; or train longer, if the training "
    hint += "had fewer than about 50 steps: before, the statistics of batch norms have not settled"
    if source.is_own:
        message = "the statistics of the batch norms had not settled at the end of the training, "
        message += "as the run's training images show"
        hint = "train in more steps: more --epochs, more images or a smaller --batch-size; if the "
        hint += "images have changed since the training, train again"
    return [ExportWarning(message=f"{message}: {check.shift.figures}", hint=hint)]


def training_warnings(run: RunDocument | None) -> list[ExportWarning]:
    """Return a warning if the training of a run was no better than always predicting one class."""
    metrics = run.metrics if run else None
    accuracy = metrics.accuracy if metrics else None
    baseline = metrics.baseline_accuracy if metrics else None
    if metrics is None or accuracy is None or baseline is None or accuracy > baseline:
        return []
    images = plural(metrics.val_images, "validation image") if metrics.val_images else "images"
    return [
        ExportWarning(
            message=f"the network is {NO_BETTER}: the training measured {accuracy:.2f} % on "
            f"{images}, and {baseline:.2f} % is the accuracy of one class",
            hint=f"train again: {REMEDIES}",
        )
    ]


def drop_wrong_guess(
    check: NetworkCheck | None, source: Source
) -> tuple[NetworkCheck | None, Source]:
    """Return both without classes if those are a guess that the predictions contradict."""
    if check is None or check.classes is None or not source.classes_are_guessed:
        return check, source
    found = check_labels(check.classes, check.predicted, len(source.labels))
    if found.moved or not found.no_better_than_chance:
        return check, source
    logger.warning(
        "the class folders are not taken as the network's classes: their order was a guess, and "
        "the predictions are correct for %.1f %% of %s, no more than by chance (%.1f %% if the "
        "labels were shuffled); if they are its classes, name them like the labels, or by the "
        "numbers of the outputs",
        100 * found.correct / found.images, plural(found.images, "image"),
        100 * found.chance / found.images,
    )  # fmt: skip
    return replace(check, classes=None), replace(source, classes={}, classes_are_guessed=False)


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
        hint = error.hint or ""
        if source.is_own:
            hint = (
                "if the training was no better, take more epochs, more images or weights to start "
            )
            hint += f"from (--init); otherwise {error.hint}"
        if labels_are_used:
            hint = (
                "if the class folders are not the network's classes, put the images into one "
                f"folder without sub-folders; otherwise {hint}"
            )
            raise DataError(str(error), hint) from error
        return [ExportWarning(message=str(error), hint=hint)]
    return []
