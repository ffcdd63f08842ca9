"""The progress table of the terminal, with one line per epoch."""

from __future__ import annotations

from collections.abc import Sequence

from resdeploy.images.preprocessing import pixel_count
from resdeploy.tables import plural
from resdeploy.train.config import TrainingConfig
from resdeploy.train.run.folder import EpochMetrics

ESTIMATE_STEPS, ESTIMATE_SECONDS = 10, 10.0  # after the first step, which may compile
WORTH_SAYING = 300.0  # seconds
VAL_COST = 1 / 3  # of an image, which has no backward pass: that costs twice the forward one
SMALL_SIDE = 128  # pixels
ROW = "{:>9}{:>9}{:>9}{:>10}{:>10}{:>9}{:>11}"
HEADER = ROW.format("epoch", "loss", "val loss", "top-1", "images/s", "loading", "time left")


def epoch_line(metrics: Sequence[EpochMetrics], epochs: int) -> str:
    """Return the line of the last epoch; the time left is extrapolated from all epochs so far."""
    last = metrics[-1]
    seconds_left = sum(line.seconds for line in metrics) / len(metrics) * (epochs - len(metrics))
    return ROW.format(
        f"{last.epoch}/{epochs}",
        f"{last.loss:.3f}",
        f"{last.val_loss:.3f}",
        f"{last.accuracy:.2f} %",
        f"{last.images_per_second:.0f}",
        f"{last.waiting:.0%}",
        _duration(seconds_left),
    )


class DurationEstimate:
    """The estimate of the duration of a run, which is made once, in its first epoch."""

    def __init__(self, config: TrainingConfig, train_images: int, val_images: int) -> None:
        self._config = config
        self._images = train_images + VAL_COST * val_images
        self._begin: tuple[int, int, float] | None = None
        self._done = False

    def line(self, steps: int, images: int, now: float) -> str | None:
        """Return the line once the rate is known and if the run is long; `steps` are finished."""
        if self._begin is None:
            self._begin = steps, images, now
        first_steps, first_images, start = self._begin
        seconds = now - start
        early = steps - first_steps < ESTIMATE_STEPS and seconds < ESTIMATE_SECONDS
        if self._done or early or images == first_images:
            return None
        self._done = True
        config = self._config
        total = seconds / (images - first_images) * self._images * config.epochs
        if total < WORTH_SAYING:
            return None
        shorter = ["--arch resnet18"] if config.init is None and config.arch != "resnet18" else []
        if pixel_count(config.image_size) > SMALL_SIDE**2:
            shorter.append(f"--image-size {SMALL_SIDE}")
        return (
            f"about {_rough(total)} for at most {plural(config.epochs, 'epoch')}; shorter: "
            f"{', '.join([*shorter, 'fewer --epochs'])}"
        )


def _rough(seconds: float) -> str:
    hours = seconds / 3600
    return plural(round(seconds / 60), "minute") if hours < 2 else f"{hours:.1f} hours"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
