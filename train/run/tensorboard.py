"""TensorBoard event files with the metrics of each epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from resdeploy.errors import OutputError, needs_extra
from resdeploy.train.run.folder import EpochMetrics


def event_writer(folder: Path, epochs_done: int) -> Callable[[EpochMetrics], None]:
    """Return a function that appends an epoch to the event files in `folder/tensorboard`.

    Existing events of epochs after `epochs_done` are discarded.

    Raises:
        MissingDependencyError: The package tensorboard is not installed.
        OutputError: TensorBoard cannot write to a folder with this name.
    """
    with needs_extra():
        from torch.utils.tensorboard import SummaryWriter

    try:
        writer = SummaryWriter(str(folder / "tensorboard"), purge_step=epochs_done + 1)
    except UnicodeEncodeError as error:
        raise OutputError(
            f"TensorBoard cannot write to {folder}, whose name is not UTF-8",
            "choose another run folder with -o, or leave out --tensorboard",
        ) from error

    def add(metrics: EpochMetrics) -> None:
        for name in ("loss", "val_loss", "accuracy", "lr", "images_per_second", "waiting"):
            writer.add_scalar(name, getattr(metrics, name), metrics.epoch)
        writer.flush()

    return add
