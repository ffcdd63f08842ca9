"""Reasons to doubt that a training will learn, and the accuracy without learning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from resdeploy.readable_text import readable
from resdeploy.tables import plural
from resdeploy.train.config import TrainingConfig
from resdeploy.train.data.dataset import DataSplits

# Judgements, not measurements: what a network with random weights, and one whose features exist
# already, need to see of a class.
FEW_IMAGES, FEW_IMAGES_WITH_INIT = 100, 10
# The recipe `finetune` needs about so many steps for 1,000 images; batch norm's running statistics,
# averaged over 10 steps, do not follow the weights in much fewer.
FEW_STEPS = 100
FEW_VAL_IMAGES = 50  # the 95 % confidence interval of an accuracy of 90 % is 17 points wide


@dataclass(frozen=True, slots=True)
class MajorityBaseline:
    """The class with the most training images, and the accuracy of always predicting it."""

    label: str
    accuracy: float
    """Top-1 accuracy on the validation images, in percent."""

    def __str__(self) -> str:
        return (
            f"always predicting '{readable(self.label)}' has an accuracy of {self.accuracy:.2f} %"
        )


def majority_baseline(splits: DataSplits) -> MajorityBaseline:
    """Return the baseline; of equally frequent classes the first."""
    (label, _), *_ = Counter(sorted(splits.train.labels)).most_common(1)
    share = splits.val.labels.count(label) / len(splits.val.labels)
    return MajorityBaseline(splits.train.classes[label], 100 * share)


def reasons_to_doubt(config: TrainingConfig, splits: DataSplits, steps: int) -> Iterator[str]:
    """Yield a sentence with a remedy for each setting or number of images that is too small.

    `steps` is the number of steps of an epoch.
    """
    images = len(splits.train.labels)
    (label, count), *_ = Counter(splits.train.labels).most_common()[::-1]
    few = FEW_IMAGES if config.init is None else FEW_IMAGES_WITH_INIT
    if count < few:
        remedy = "add images" if config.init else "start from trained weights with --init"
        yield (
            f"class '{readable(splits.train.classes[label])}' has only "
            f"{plural(count, 'training image')} of {few} or more that are advised; {remedy}"
        )
    if config.batch_size > images:
        yield (
            f"the batch of {config.batch_size} images is larger than the {images} training images, "
            "so an epoch is one step; use a smaller --batch-size"
        )
    if steps * config.epochs < FEW_STEPS and not config.qat:
        yield (
            f"{plural(config.epochs, 'epoch')} of {plural(steps, 'step')} teach little; use more "
            f"--epochs or a smaller --batch-size, for {FEW_STEPS} steps or more"
        )
    if (count := len(splits.val.labels)) < FEW_VAL_IMAGES:
        yield (
            f"{plural(count, 'validation image')} measure the accuracy only roughly; "
            f"{FEW_VAL_IMAGES} or more are advised"
        )
