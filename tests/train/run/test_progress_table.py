"""Tests of the estimate of a run's duration."""

from __future__ import annotations

from resdeploy.train.config import TrainingConfig
from resdeploy.train.run.folder import RunPosition
from resdeploy.train.run.progress_table import DurationEstimate


def lines(config: TrainingConfig, seconds_per_step: float) -> list[str]:
    """Return the lines of an epoch of 160 images and 30 validation images, ten per step."""
    estimate = DurationEstimate(config, 160, 30)
    # The first step, which compiles, takes 50 s more.
    return [
        estimate.line(
            RunPosition(steps_done=step, images=10 * step, seconds=50 + step * seconds_per_step)
        )
        for step in range(1, 17)
    ]


def test_a_long_run_is_announced_once_its_rate_is_known() -> None:
    found = lines(TrainingConfig(epochs=60, image_size=224), 1.0)
    assert [index for index, line in enumerate(found) if line] == [10]
    # (160 + 30 / 3) images per epoch at 0.1 s, 60 epochs
    assert found[10] == (
        "about 17 minutes for at most 60 epochs; "
        "shorter: --arch resnet18, --image-size 128, fewer --epochs; "
        "Ctrl-C saves it, and names the commands to continue with the same settings, or to end "
        "with the best epoch"
    )
    found = lines(TrainingConfig(epochs=60, image_size=96, init="a.pth"), 5.0)
    assert [index for index, line in enumerate(found) if line] == [2]  # after 10 s
    assert found[2].startswith("about 85 minutes for at most 60 epochs; shorter: fewer --epochs; ")


def test_a_short_run_is_not_announced() -> None:
    assert not any(lines(TrainingConfig(epochs=10, image_size=224), 1.0))
