"""Tests of the text of `resdeploy train`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from resdeploy.cli.train import training_text
from resdeploy.train.run.outcome import FINISHED
from resdeploy.train.run.results import TrainingResult

RESULT = TrainingResult(
    accuracy=30.0, epochs=2, planned_epochs=2, best_epoch=2, stopped=None, baseline_accuracy=25.0,
    train_images=160, val_images=40, held_out=True, unreadable=0, passed_over={},
    run=Path("runs/photos"), images_per_second=10.0, seconds=20.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("accuracy", "images", "told"),
    [(30.0, 40, "18 to 45 %"), (30.0, 4000, None), (45.0, 40, None), (20.0, 40, None)],
)
def test_an_accuracy_that_can_be_chance_is_called_so(
    accuracy: float, images: int, told: str | None
) -> None:
    text = training_text(replace(RESULT, accuracy=accuracy, val_images=images))
    assert ("this can be chance" in text) == (told is not None)
    assert told is None or f"the accuracy is {told} with 95 % confidence\n" in text
    # The report advises no export either.
    assert ("next: resdeploy export" in text) == (told is None and accuracy > 25)
    remedies = "next: use more images, more --epochs, or --init with trained weights"
    assert text.endswith(remedies) == (told is not None)


@pytest.mark.parametrize(
    ("best", "stopped", "told"),
    [
        (2, None, "so a new training with more --epochs may help"),
        (2, FINISHED, "so its other epochs may help: resdeploy train --resume runs/photos"),
        (1, None, None),
        (2, "the target is reached", None),
    ],
)
def test_more_epochs_are_named_if_the_last_one_is_the_best(
    best: int, stopped: str | None, told: str | None
) -> None:
    text = training_text(replace(RESULT, best_epoch=best, stopped=stopped))
    advice = [line for line in text.splitlines() if "may help" in line]
    assert advice == ([f"the last epoch is the most accurate one, {told}"] if told else [])


@pytest.mark.parametrize("accuracy", [20.0, 25.0, 90.0])
def test_each_training_names_its_report_and_the_next_step(accuracy: float) -> None:
    lines = training_text(replace(RESULT, accuracy=accuracy)).splitlines()
    assert "report: runs/photos/report.html" in lines
    exports = lines[-1] == "next: resdeploy export runs/photos --int8"
    assert exports is (accuracy > 25)
    if not exports:
        assert lines[-1].startswith("next: train again, because the network is no better than")
        assert "--epochs" in lines[-1]
