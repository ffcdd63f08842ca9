"""The progress table of the terminal, with one line per epoch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from resdeploy.images.preprocessing import pixel_count
from resdeploy.tables import plural
from resdeploy.train.config import TrainingConfig
from resdeploy.train.run.folder import EpochMetrics, RunPosition

RATE_STEPS, RATE_SECONDS = 10, 10.0  # from which on the rate is known
SLOWER = 3  # times as slow as the fastest epoch, which no quiet machine is
VAL_COST = 1 / 3  # of an image, without the backward pass, which costs twice the forward one
STOPPING = (
    "Ctrl-C saves it, and names the commands to continue with the same settings, or to end with "
    "the best epoch"
)
ROW = "{:>9}{:>9}{:>10}{:>10}{:>10}{:>9}{:>11}"
HEADER = ROW.format("epoch", "loss", "val loss", "top-1", "images/s", "loading", "time left")


def epoch_line(metrics: Sequence[EpochMetrics], epochs: int) -> str:
    """Return the line of the last epoch, and a second one if it is the first slow one.

    The time left is extrapolated from all epochs so far.
    """
    last = metrics[-1]
    seconds_left = sum(line.seconds for line in metrics) / len(metrics) * (epochs - len(metrics))
    line = ROW.format(
        f"{last.epoch}/{epochs}",
        f"{last.loss:.3f}",
        f"{last.val_loss:.3f}",
        f"{last.accuracy:.2f} %",
        f"{last.images_per_second:.0f}",
        f"{last.waiting:.0%}",
        _duration(seconds_left),
    )
    return "\n".join(filter(None, [line, slow_epoch(metrics)]))


def slow_epoch(metrics: Sequence[EpochMetrics]) -> str:
    """Return advice if the last epoch is the first that is much slower than one before it.

    The loading of images is no cause of it: its share is in the table.
    """
    computing = [line.images_per_second / max(1 - line.waiting, 0.01) for line in metrics]
    slow = [rate < fastest / SLOWER for rate, fastest in zip(computing, accumulate(computing, max))]
    if sum(slow) != 1 or not slow[-1]:
        return ""
    return (
        f"the images of epoch {metrics[-1].epoch} took {max(computing) / computing[-1]:.1f} times "
        "as long as those of the fastest epoch, most likely because other processes use the same "
        "processor; with OMP_NUM_THREADS=1, a training on a CPU suffers less from them; "
        f"{STOPPING}"
    )


class DurationEstimate:
    """The estimate of the longest duration of a run, made once, in its first epoch."""

    def __init__(self, config: TrainingConfig, train_images: int, val_images: int) -> None:
        self._config, self._images = config, train_images + val_images * VAL_COST
        self._begin: RunPosition | None = None
        self._made = False

    def line(self, now: RunPosition) -> str:
        """Return a line when the rate is known, if the run is long, otherwise an empty text."""
        begin = self._begin = self._begin or now  # after the first step, which may compile
        seconds, images = now.seconds - begin.seconds, now.images - begin.images
        early = now.steps_done - begin.steps_done < RATE_STEPS and seconds < RATE_SECONDS
        if self._made or now.epochs_done or early or not images:
            return ""
        self._made, config = True, self._config
        minutes = round(seconds / images * self._images * config.epochs / 60)
        shorter = ["--arch resnet18"] if not config.init and config.arch != "resnet18" else []
        shorter += ["--image-size 128"] if pixel_count(config.image_size) > 128**2 else []
        longest = f"{plural(minutes, 'minute')} for at most {plural(config.epochs, 'epoch')}"
        shorter.append("fewer --epochs")
        told = f"about {longest}; shorter: {', '.join(shorter)}; {STOPPING}"
        return told if minutes > 5 else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
