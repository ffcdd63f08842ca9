"""The plot of loss and accuracy per epoch, `curves.png`."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resdeploy.errors import needs_extra
from resdeploy.filesystem import write_file
from resdeploy.train.run.folder import EpochMetrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE = "#0072B2", "#D55E00"


def draw_curves(metrics: Sequence[EpochMetrics], path: Path) -> None:
    """Write a plot of the losses and the validation accuracy per epoch."""
    epochs = [line.epoch for line in metrics]
    figure = new_figure(8, 3.2)
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [line.loss for line in metrics], ".-", color=BLUE, label="training")
    left.plot(epochs, [line.val_loss for line in metrics], ".-", color=ORANGE, label="validation")
    left.set(xlabel="epoch", ylabel="loss")
    # The validation loss can be huge until the batch-norm statistics settle, so it is cut off.
    finite = [line.val_loss for line in metrics if math.isfinite(line.val_loss)] or [1.0]
    left.set_ylim(0, 1.15 * max(np.percentile(finite, 75), *(line.loss for line in metrics)))
    left.legend(frameon=False)
    right.plot(epochs, [line.accuracy for line in metrics], ".-", color=ORANGE)
    right.set(xlabel="epoch", ylabel="validation accuracy (%)")
    write_file(path, figure_png(figure))


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of `width` by `height` inches, without pyplot and its global state.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    with needs_extra():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def figure_png(figure: Figure) -> bytes:
    """Return the figure as a PNG file, with whole epochs, a pale grid and no frame."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.locator_params(axis="x", integer=True)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=120, format="png")
    return stream.getvalue()
