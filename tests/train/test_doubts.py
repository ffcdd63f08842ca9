"""Tests of the warnings before a training, and of the accuracy without learning."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from resdeploy.images.class_folders import LabelledImages
from resdeploy.train.config import TrainingConfig
from resdeploy.train.data.dataset import DataSplits
from resdeploy.train.data.shards import ImageFile, TarMember
from resdeploy.train.doubts import (
    NOTHING_LEARNED,
    doubts_after,
    majority_baseline,
    reasons_to_doubt,
)
from resdeploy.train.run.outcome import RunOutcome


def splits(train: tuple[int, ...], val: tuple[int, ...] = (60, 40)) -> DataSplits:
    def part(counts: tuple[int, ...]) -> LabelledImages[ImageFile]:
        labels = tuple(label for label, count in enumerate(counts) for _ in range(count))
        files: tuple[TarMember, ...] = (None,) * len(labels)  # type: ignore[assignment]
        return LabelledImages(classes=("cat", "dog"), files=files, labels=labels)

    return DataSplits(part(train), part(val))


@pytest.mark.parametrize(
    ("train", "label", "accuracy"), [((9, 8), "cat", 60), ((8, 9), "dog", 40), ((5, 5), "cat", 60)]
)
def test_the_baseline_is_the_most_frequent_class_of_the_training(
    train: tuple[int, ...], label: str, accuracy: float
) -> None:
    found, percent = majority_baseline(splits(train))
    assert (found, round(percent, 9)) == (label, accuracy)


@pytest.mark.parametrize(
    ("train", "val", "settings", "doubts"),
    [
        ((500, 500), (60, 40), {}, []),
        ((500, 9), (60, 40), {"init": "a.pth"}, ["'dog' has 9 .*, fewer than 10; add"]),
        ((500, 99), (60, 40), {}, ["'dog' has 99 training images, fewer than 100; .* --init"]),
        (
            (48, 50), (60, 40), {"epochs": 100},
            ["all 2 classes have fewer than 100 training images; .* 'cat', has 48; start"],
        ),
        ((500, 500), (9, 9), {}, ["only 18 validation images"]),
        ((500, 500), (60, 40), {"epochs": 3}, ["only 48 steps; .* for at least 100 steps$"]),
        ((500, 500), (60, 40), {"epochs": 3, "init": "a.pth", "qat": True}, []),
        (
            (500, 500), (60, 40), {"batch_size": 2000, "epochs": 100},
            ["the batch of 2000 images is larger than the 1000"],
        ),
    ],
)  # fmt: skip
def test_what_is_too_small_to_learn_is_named_with_a_remedy(
    train: tuple[int, ...], val: tuple[int, ...], settings: dict[str, Any], doubts: list[str]
) -> None:
    config = TrainingConfig(**settings)
    steps = -(-sum(train) // config.batch_size)
    found = list(reasons_to_doubt(config, splits(train, val), steps))
    assert len(found) == len(doubts)
    for sentence, pattern in zip(found, doubts):
        assert re.search(pattern, sentence)


def test_a_loss_above_that_of_guessing_is_a_doubt() -> None:
    """Two classes of the same probability have a cross entropy of log 2 = 0.693."""
    images, config = splits((60, 40)), TrainingConfig()
    taught = TrainingConfig(distillation=1.0, qat=True, init="a.pth")
    outcome = RunOutcome(
        accuracy=70, epochs=3, planned_epochs=3, best_epoch=3, stopped=None, baseline_accuracy=60,
        train_images=100, val_images=100, held_out=True, unreadable=0, passed_over={},
    )  # fmt: skip
    assert list(doubts_after(outcome, 0.69, config, images)) == []
    assert list(doubts_after(outcome, 9.0, taught, images)) == []
    (found,) = doubts_after(outcome, 0.70, config, images)
    assert "0.70, is above that of guessing, 0.69" in found
    assert "; use a smaller --lr" in found
    guessing = dataclasses.replace(outcome, accuracy=60)
    assert list(doubts_after(guessing, 0.70, config, images)) == [NOTHING_LEARNED, found]
