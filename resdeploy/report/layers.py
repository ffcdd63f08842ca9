"""Report section of the layers: quantisation noise, times, and histograms of activations."""

from __future__ import annotations

from collections.abc import Sequence

from resdeploy.bundle.analysis import ActivationHistogram, Analysis, LayerCost
from resdeploy.pages import svg
from resdeploy.pages.blocks import Block, Figure, Table
from resdeploy.result_files.benchmark import LayerTimes
from resdeploy.tables import NONE

NOISIEST = 12  # layers in the plot


def layer_blocks(analysis: Analysis, times: LayerTimes | None) -> tuple[Block, ...]:
    """Return a plot of the noisiest layers, a table of all layers, and histograms."""
    noisiest = sorted(
        (layer for layer in analysis.layers if layer.worst_db is not None),
        key=lambda layer: layer.worst_db or 0.0,
    )[:NOISIEST]
    names = {layer.name for layer in noisiest}
    measured = {name: f"{ms:.3f} ms" for name, ms in times.ms.items()} if times else {}
    time_head = ["time"] if times else []
    total = sum(layer.macs for layer in analysis.layers) or 1
    table = Table(
        caption="Convolutions and the classifier in graph order: share of the multiply-accumulates "
        "(MACs), and SQNR of the logits of int8.onnx when only the input, or only the weights, of "
        f"this layer are quantised. The {len(names)} noisiest are highlighted."
        + (f" Time: in {times.graph}, from ONNX Runtime's profile." if times else ""),
        head=("layer", "kind", "MACs", "SQNR, input", "SQNR, weights", "in float for", *time_head),
        rows=tuple(
            (
                layer.name,
                layer.kind,
                f"{100 * layer.macs / total:.1f} %",
                _decibels(layer.input_sqnr_db),
                _decibels(layer.weight_sqnr_db),
                ", ".join(layer.in_float) or NONE,
                *([measured.get(layer.name, NONE)] if times else []),
            )
            for layer in analysis.layers
        ),
        highlighted=frozenset(i for i, layer in enumerate(analysis.layers) if layer.name in names),
        html_only=True,
    )
    plots = [_noise(noisiest)] if noisiest else []
    return (*plots, table, *map(_histogram, analysis.histograms))


def _noise(layers: Sequence[LayerCost]) -> Figure:
    worst = layers[0].worst_db or 0.0
    rows = [
        (layer.name, 10 ** ((worst - (layer.worst_db or 0.0)) / 20), _decibels(layer.worst_db))
        for layer in layers
    ]
    return Figure(
        svg=svg.bars(rows, description="Noise of the logits by layer."),
        caption="The noisiest layers: SQNR of the logits of int8.onnx when only the layer's input, "
        "or only its weights, are quantised, whichever is worse. The bars show the amplitude of "
        "the noise.",
    )


def _histogram(values: ActivationHistogram) -> Figure:
    ranges = (
        f"values from {values.low:.3g} to {values.high:.3g}, quantisation range from "
        f"{values.range_low:.3g} to {values.range_high:.3g}"
    )
    return Figure(
        svg=svg.histogram(
            values.heights,
            values.low,
            values.high,
            (values.range_low, values.range_high),
            f"Histogram of {values.tensor}: {ranges}",
        ),
        caption=f"{values.tensor} on the calibration images: {ranges}. Counts are on a logarithmic "
        "scale; values outside the dashed lines are clipped.",
    )


def _decibels(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f} dB"
