"""Reasons to doubt that a training will learn, and the accuracy without learning."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from resdeploy.bundle.quality import NO_BETTER
from resdeploy.tables import plural
from resdeploy.train.config import TrainingConfig
from resdeploy.train.data.dataset import DataSplits

if TYPE_CHECKING:
    from resdeploy.train.run.outcome import RunOutcome

# Smallest numbers of images of a class for new and for trained weights: estimated, not measured.
FEW_IMAGES, FEW_IMAGES_WITH_INIT = 100, 10
FEW_STEPS = 100  # batch norm's running statistics are averages over 10 steps
FEW_VAL_IMAGES = 50  # the 95 % confidence interval of an accuracy of 90 % is 17 points wide

REMEDIES = "use more --epochs, more images, or --init with trained weights"
NOTHING_LEARNED = f"the network is {NO_BETTER}; {REMEDIES}"


def chance_doubt(accuracy: float, images: int, baseline: float) -> str | None:
    """Return a doubt if an accuracy in % is not surely above that of always predicting one class.

    A lower accuracy than this `baseline` has a warning of its own: `NOTHING_LEARNED`.
    """
    from resdeploy.statistics import wilson_interval  # needs numpy

    low, high = wilson_interval(round(accuracy * images / 100), images)
    if not low <= baseline < accuracy:
        return None
    return (
        f"on so few images, this can be chance: the accuracy is {low:.0f} to {high:.0f} % with "
        "95 % confidence; use more images, more --epochs, or --init with trained weights"
    )


def doubts_after(
    outcome: RunOutcome, loss: float, config: TrainingConfig, splits: DataSplits
) -> Iterator[str]:
    """Yield a sentence with a remedy for each sign that a training with this last loss failed."""
    if outcome.accuracy <= outcome.baseline_accuracy < 100:
        yield NOTHING_LEARNED
    guessing = math.log(len(splits.train.classes))
    if loss > guessing and not config.distillation:  # the teacher adds a loss of its own
        yield (
            f"the training loss of the last epoch, {loss:.2f}, is above that of guessing, "
            f"{guessing:.2f}: the steps are too large or too few; use a smaller --lr, more "
            "--epochs, or --init with trained weights"
        )


def majority_baseline(splits: DataSplits) -> tuple[str, float]:
    """Return the most frequent class in training, and the accuracy of always predicting it in %."""
    label = Counter(sorted(splits.train.labels)).most_common(1)[0][0]
    share = splits.val.labels.count(label) / len(splits.val.labels)
    return splits.train.classes[label], 100 * share


def reasons_to_doubt(config: TrainingConfig, splits: DataSplits, steps: int) -> Iterator[str]:
    """Yield a sentence with a remedy for each setting that is too small; an epoch has `steps`."""
    counts = Counter(splits.train.labels)
    label, count = counts.most_common()[-1]
    arch = config.arch or "resnet34"
    few, remedy = FEW_IMAGES, f"start from weights with --init, such as torchvision's {arch}-*.pth"
    if config.init is not None:
        few, remedy = FEW_IMAGES_WITH_INIT, "add images"
    small, name = sum(found < few for found in counts.values()), splits.train.classes[label]
    if small == 1:
        yield f"'{name}' has {plural(count, 'training image')}, fewer than {few}; {remedy}"
    elif small:
        part = f"all {small}" if small == len(counts) else f"{small} of {len(counts)}"
        yield (f"{part} classes have fewer than {few} training images; the smallest, '{name}', has "
               f"{count}; {remedy}")  # fmt: skip
    if config.batch_size > (images := len(splits.train.labels)):
        yield (
            f"the batch of {config.batch_size} images is larger than the {images} training images, "
            "so an epoch is one step; add images or use a smaller --batch-size"
        )
    if steps * config.epochs < FEW_STEPS and not config.qat:
        yield (f"training has only {plural(steps * config.epochs, 'step')}; use more images, more "
               f"--epochs or a smaller --batch-size for at least {FEW_STEPS} steps")  # fmt: skip
    if (count := len(splits.val.labels)) < FEW_VAL_IMAGES:
        place = ", or a folder val/ with" if splits.held_out else " to val/, to have"
        yield (f"the accuracy is measured on only {plural(count, 'validation image')}; add "
               f"pictures{place} {FEW_VAL_IMAGES} or more")  # fmt: skip
