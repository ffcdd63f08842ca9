"""The plots of loss and accuracy per epoch in the report of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from resdeploy.pages.blocks import Figure
from resdeploy.pages.svg import PlotLine, PlotPoint, scatter
from resdeploy.tables import percentage
from resdeploy.train.run.folder import EpochMetrics
from resdeploy.train.run.outcome import RunOutcome

TRAINING, VALIDATION, BEST, BASELINE = "line0", "line1", "mark0", "mark1"
LEAST = 1e-6  # of the losses on a logarithmic axis
Curve = list[tuple[float, float]]


def curve_figures(metrics: Sequence[EpochMetrics], outcome: RunOutcome) -> tuple[Figure, ...]:
    """Return plots of the accuracy and of the losses, which mark the best epoch.

    The accuracy's plot also marks the accuracy of always predicting the most frequent class.
    """
    best, baseline = f"most accurate epoch: {outcome.best_epoch}", outcome.baseline_accuracy
    accuracies: Curve = [(line.epoch, line.accuracy) for line in metrics]
    losses: Curve = [(line.epoch, max(line.loss, LEAST)) for line in metrics]
    val_losses: Curve = [
        (line.epoch, max(line.val_loss, LEAST)) for line in metrics if math.isfinite(line.val_loss)
    ]
    # The validation loss can be huge until the batch-norm statistics settle. A logarithmic axis
    # has room for two decades above the usual losses; only higher ones are cut off.
    usual = float(np.percentile([loss for _, loss in val_losses] or [0.0], 75))
    highest = 100 * max(usual, *(loss for _, loss in losses))
    cut = [f"{loss:.3g} in epoch {epoch:g}" for epoch, loss in val_losses if loss > highest]
    more = f" and {len(cut) - 3} more" if len(cut) > 3 else ""
    marked = f" Values above the plot are drawn at its edge: {', '.join(cut[:3])}{more}."
    return (
        _figure(
            {VALIDATION: accuracies, BASELINE: [(-math.inf, baseline), (math.inf, baseline)]},
            outcome.best_epoch,
            y_label="top-1 accuracy in %",
            y_max=100.0,
            caption="Accuracy on the validation images after each epoch.",
            legend=(
                (VALIDATION, "validation images"),
                (BASELINE, f"always the most frequent class: {percentage(baseline, 2)}"),
                (BEST, best),
            ),
        ),
        _figure(
            {TRAINING: losses, VALIDATION: val_losses},
            outcome.best_epoch,
            y_label="cross-entropy loss (logarithmic)",
            y_max=highest,
            logarithmic=True,
            caption="Loss of each epoch. The training loss includes label smoothing and "
            "augmentation, the validation loss does not." + (marked if cut else ""),
            legend=((TRAINING, "training"), (VALIDATION, "validation"), (BEST, best)),
        ),
    )


def _figure(
    curves: dict[str, Curve],
    best: int,
    *,
    y_label: str,
    y_max: float,
    logarithmic: bool = False,
    caption: str,
    legend: tuple[tuple[str, str], ...],
) -> Figure:
    points = [
        PlotPoint(x, y, "", 0 if style == TRAINING else 1)
        for style, curve in curves.items()
        for x, y in curve
        if x == best
    ]
    lines = [PlotLine(tuple(curve), style) for style, curve in curves.items() if curve]
    shown = tuple(line for line in legend if line[0] == BEST or curves.get(line[0]))
    ends = {style: (curve[0][1], curve[-1][1]) for style, curve in curves.items() if curve}
    values = "; ".join(
        f"{meaning}, from {ends[style][0]:.4g} to {ends[style][1]:.4g}"
        if style in ends
        else meaning
        for style, meaning in shown
    )
    return Figure(
        svg=scatter(
            points,
            [*lines, PlotLine(((best, -math.inf), (best, math.inf)), BEST)],
            x_label="epoch",
            y_label=y_label,
            description=f"{caption.partition('.')[0]}: {values}",
            y_max=y_max,
            y_logarithmic=logarithmic,
            whole_x=True,
        ),
        caption=caption,
        legend=shown,
    )
