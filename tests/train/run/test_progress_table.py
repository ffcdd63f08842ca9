"""Tests of the estimate of a run's duration, and of the advice about a slow epoch."""

from __future__ import annotations

import pytest

from resdeploy.train.config import TrainingConfig
from resdeploy.train.run.folder import EpochMetrics, RunPosition
from resdeploy.train.run.progress_table import DurationEstimate, epoch_line


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


@pytest.mark.parametrize(
    ("rates", "advised"),
    [
        ((32, 18, 5), "took 6.4 times as long"),  # as measured beside another program
        ((32, 18, 5, 4), ""),  # it was said before
        ((108, 100, 40), ""),
        ((5, 108), ""),
        ((108,), ""),
    ],
)
def test_the_first_slow_epoch_names_other_processes(rates: tuple[float, ...], advised: str) -> None:
    row, *advice = epoch_line([metrics(rate) for rate in rates], 9).split("\n")
    assert row.split()[0] == "1/9"
    assert [advised in line and "OMP_NUM_THREADS=1" in line for line in advice] == (
        [True] if advised else []
    )


def test_an_epoch_that_waited_for_images_was_not_slowed_by_other_processes() -> None:
    assert "\n" not in epoch_line([metrics(100), metrics(10, waiting=0.9)], 9)


def metrics(images_per_second: float, waiting: float = 0.0) -> EpochMetrics:
    return EpochMetrics(
        epoch=1, loss=1, val_loss=1, accuracy=50, lr=0.1, images_per_second=images_per_second,
        seconds=10, waiting=waiting,
    )  # fmt: skip
