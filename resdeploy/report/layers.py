"""What each layer costs, in noise and in time, and how the noisiest activations lie."""

from __future__ import annotations

from collections.abc import Sequence

from resdeploy.bundle.analysis import ActivationHistogram, Analysis, LayerCost
from resdeploy.pages import svg
from resdeploy.pages.blocks import Block, Figure, Table
from resdeploy.results.benchmark import LayerTimes

NONE = "-"
WORST = 12  # layers, in the plot


def layer_blocks(analysis: Analysis, times: LayerTimes | None) -> tuple[Block, ...]:
    noisiest = sorted(
        (layer for layer in analysis.layers if layer.worst_db is not None),
        key=lambda layer: layer.worst_db or 0.0,
    )[:WORST]
    names = {layer.name for layer in noisiest}
    total = sum(layer.macs for layer in analysis.layers) or 1
    table = Table(
        caption="Every convolution and the classifier, in the order of the graph: its share of "
        "the products, and the SQNR at the logits when what it reads, or its weights, are all "
        f"that is quantised for TensorRT. The {len(names)} noisiest stand out."
        + (f" Milliseconds in {times.graph}, by ONNX Runtime's profile." if times else ""),
        head=(
            "layer",
            "kind",
            "products",
            "input alone",
            "weights alone",
            "back in float",
            *(["time"] if times else []),
        ),
        rows=tuple(
            (
                layer.name,
                layer.kind,
                f"{100 * layer.macs / total:.1f} %",
                _decibels(layer.input_sqnr_db),
                _decibels(layer.weight_sqnr_db),
                ", ".join(layer.in_float) or NONE,
                *([_time(times, layer.name)] if times else []),
            )
            for layer in analysis.layers
        ),
        chosen=frozenset(i for i, layer in enumerate(analysis.layers) if layer.name in names),
        aside=True,
    )
    plots = [_noise(noisiest)] if noisiest else []
    return (*plots, table, *(_histogram(one) for one in analysis.histograms))


def _noise(layers: Sequence[LayerCost]) -> Figure:
    worst = layers[0].worst_db or 0.0
    rows = [
        (layer.name, 10 ** ((worst - (layer.worst_db or 0.0)) / 20), _decibels(layer.worst_db))
        for layer in layers
    ]
    return Figure(
        svg=svg.bars(
            rows,
            description="Noise at the logits by layer. "
            + "; ".join(f"{name}: {figure}" for name, _, figure in rows),
        ),
        caption="Which layers make most noise at the logits of int8.onnx when they alone are "
        "quantised, by amplitude.",
    )


def _histogram(one: ActivationHistogram) -> Figure:
    shown = f"values from {one.low:.3g} to {one.high:.3g}, the range is {one.range_low:.3g} to "
    clipped = f"{shown}{one.range_high:.3g}"
    return Figure(
        svg=svg.histogram(
            one.heights,
            one.low,
            one.high,
            (one.range_low, one.range_high),
            f"Histogram of {one.tensor}: {clipped}",
        ),
        caption=f"{one.tensor} over the calibration images: {clipped}. Counts are on a logarithmic "
        "scale; what lies outside of the dashed lines is clipped.",
    )


def _time(times: LayerTimes, layer: str) -> str:
    return f"{times.ms[layer]:.3f} ms" if layer in times.ms else NONE


def _decibels(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f} dB"
