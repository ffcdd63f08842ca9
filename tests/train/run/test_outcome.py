"""Tests of the best epoch of a run, and of the reasons to stop."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import pytest

from resdeploy.train.config import TrainingConfig
from resdeploy.train.run.folder import EpochMetrics
from resdeploy.train.run.outcome import best_epoch, reason_to_stop
from tests.train.run.test_folder import metrics


def course(accuracies: Sequence[float], losses: Sequence[float] = ()) -> list[EpochMetrics]:
    return [
        dataclasses.replace(metrics(epoch), accuracy=accuracy, val_loss=loss)
        for epoch, (accuracy, loss) in enumerate(
            zip(accuracies, losses or [1.0] * len(accuracies)), start=1
        )
    ]


@pytest.mark.parametrize(
    ("accuracies", "best"), [([50, 70, 60], 2), ([50, 70, 70, 60], 3), ([50], 1)]
)
def test_the_best_epoch_is_the_most_accurate_and_of_equal_ones_the_latest(
    accuracies: list[float], best: int
) -> None:
    assert best_epoch(course(accuracies)).epoch == best


def test_of_equal_accuracies_the_lowest_loss_is_the_best() -> None:
    assert best_epoch(course([50, 50, 50, 50], [0.7, 3.6, math.nan, 1.9])).epoch == 1


@pytest.mark.parametrize(
    ("accuracies", "losses", "settings", "reason"),
    [
        ([], [], {}, None),
        ([50, 60], [], {"target_accuracy": 60.0}, "the target accuracy of 60 % is reached"),
        ([50, 59.9], [], {"target_accuracy": 60.0}, None),
        ([50, 60, 60, 60], [], {"patience": 3}, None),  # two epochs without a better one
        ([50, 60, 60, 60, 60], [], {"patience": 3}, "neither .* in 3 epochs"),
        ([50, 60, 60, 60, 60], [5, 4, 3, 2, 1], {"patience": 3}, None),  # the loss improves
        ([50, 60, 60, 60, 60], [5, 4, 5, math.nan, 6], {"patience": 3}, "in 3 epochs"),
        ([60] * 4, [math.nan] * 4, {"patience": 3}, "in 3 epochs"),
        ([60] * 19, [], {"patience": 0}, None),
        ([60] * 7, [], {}, None),  # a third of 20 epochs is 7
        ([60] * 8, [], {}, "in 7 epochs"),
        ([60] * 20, [], {}, None),  # it has ended anyway
    ],
)
def test_a_run_stops_at_its_target_or_when_nothing_improves(
    accuracies: list[float],
    losses: list[float],
    settings: dict[str, Any],
    reason: str | None,
) -> None:
    config = dataclasses.replace(TrainingConfig(epochs=20), **settings)
    found = reason_to_stop(course(accuracies, losses), config)
    if reason is None:
        assert found is None
    else:
        assert re.search(reason, found or "")
