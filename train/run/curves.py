"""`curves.png`: how loss and accuracy went."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resdeploy.errors import needs_extra
from resdeploy.storage import write_file
from resdeploy.train.run.folder import EpochMetrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which stay apart for colour-blind eyes.
BLUE, ORANGE = "#0072B2", "#D55E00"


def draw_curves(metrics: Sequence[EpochMetrics], path: Path) -> None:
    """Plot loss (training, validation) and accuracy over the epochs.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    epochs = [line.epoch for line in metrics]
    figure = new_figure(8, 3.2)
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [line.loss for line in metrics], ".-", color=BLUE, label="training")
    left.plot(epochs, [line.val_loss for line in metrics], ".-", color=ORANGE, label="validation")
    left.set(xlabel="epoch", ylabel="loss")
    # While the norms' running statistics settle, the validation loss can be huge: let it leave.
    finite = [line.val_loss for line in metrics if math.isfinite(line.val_loss)] or [1.0]
    left.set_ylim(0, 1.15 * max(np.percentile(finite, 75), *(line.loss for line in metrics)))
    left.legend(frameon=False)
    right.plot(epochs, [line.accuracy for line in metrics], ".-", color=ORANGE)
    right.set(xlabel="epoch", ylabel="validation accuracy (%)")
    write_file(path, png_of(figure))


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, without pyplot: no global state, no window system.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    with needs_extra():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png_of(figure: Figure) -> bytes:
    """The figure as a PNG file, its axes with whole epochs, a pale grid and no frame."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.locator_params(axis="x", integer=True)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=120, format="png")
    return stream.getvalue()
