"""The progress table of the terminal, with one line per epoch."""

from __future__ import annotations

from collections.abc import Sequence

from resdeploy.train.run.folder import EpochMetrics

ROW = "{:>9}{:>9}{:>9}{:>10}{:>10}{:>8}{:>10}"
HEADER = ROW.format("epoch", "loss", "val loss", "top-1", "images/s", "waiting", "time left")


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


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
