"""Analysis of TensorRT's INT8 graph for the report: cost of each layer, activation histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from resdeploy.bundle.analysis import ActivationHistogram, Analysis, LayerCost
from resdeploy.bundle.manifest import Encoding
from resdeploy.calibration.histogram import Histogram
from resdeploy.calibration.ranges import Range, TensorStatistics
from resdeploy.export.graph.float_layers import macs
from resdeploy.export.graph.placement import WEIGHTED, node_name, value_name
from resdeploy.export.quantization.result import Calibration

HISTOGRAMS = 4  # number of tensors with a histogram
BARS = 64  # number of bars of a histogram


def analyse(model: ir.Model, calibration: Calibration, sqnrs: Mapping[str, float]) -> Analysis:
    """Return the costs of each layer, and the histograms of the most sensitive activations.

    `sqnrs` holds the SQNR in dB with one tensor quantised, by the tensor's name, lowest first.
    """
    recipe = calibration.recipes[Encoding.TENSORRT]
    worst = [tensor for tensor in sqnrs if tensor in calibration.statistics][:HISTOGRAMS]
    return Analysis(
        layers=layer_costs(model, calibration, sqnrs),
        histograms=tuple(
            histogram_of(tensor, calibration.statistics[tensor], recipe.ranges[tensor])
            for tensor in worst
        ),
    )


def layer_costs(
    model: ir.Model, calibration: Calibration, sqnrs: Mapping[str, float]
) -> tuple[LayerCost, ...]:
    """Return the work and the SQNRs of convolutions and classifier, in the order of the graph."""
    edges = calibration.recipes[Encoding.TENSORRT].edges(model)
    tensor_read = {reader: edge.range_of for edge in edges for reader in edge.readers}
    return tuple(
        LayerCost(
            name=node_name(node),
            kind=node.op_type,
            macs=macs(node),
            input_sqnr_db=sqnrs.get(tensor_read.get((node_name(node), 0), "")),
            weight_sqnr_db=sqnrs.get(value_name(node.inputs[1])),
            in_float=tuple(
                encoding.value
                for encoding, recipe in calibration.recipes.items()
                if node.name in recipe.in_float
            ),
        )
        for node in model.graph
        if node.op_type in WEIGHTED
    )


def histogram_of(tensor: str, statistics: TensorStatistics, chosen: Range) -> ActivationHistogram:
    """Return a histogram of all values and zero, with `BARS` bars of logarithmic heights."""
    extremes = statistics.extremes.with_zero()
    low, high = extremes.low, extremes.high
    high = high if high > low else low + 1.0
    logarithms = np.log1p(_rebin(statistics.histogram, low, high - low))
    heights = logarithms / max(float(logarithms.max()), 1e-12)
    return ActivationHistogram(
        tensor=tensor,
        heights=tuple(round(float(height), 4) for height in heights),
        low=low,
        high=high,
        range_low=chosen.low,
        range_high=chosen.high,
    )


def _rebin(histogram: Histogram, low: float, span: float) -> Sequence[float]:
    bars = np.clip(((histogram.centers - low) / span * BARS).astype(np.int64), 0, BARS - 1)
    counts: list[float] = np.bincount(bars, weights=histogram.counts, minlength=BARS).tolist()
    return counts
