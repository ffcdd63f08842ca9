"""Analysis of the noise of an INT8 graph, for reports and for `resdeploy explain`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_ir as ir

from resdeploy.bundle.analysis import (
    ActivationHistogram,
    Analysis,
    LayerCost,
    Remedy,
    read_analysis,
    worst_int8,
)
from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.calibration_record import CalibrationRecord
from resdeploy.bundle.golden import Golden
from resdeploy.bundle.manifest import Artifact, Encoding, graph_name
from resdeploy.calibration.histogram import Histogram
from resdeploy.calibration.ranges import Range, TensorStatistics
from resdeploy.export.graph.coverage import Coverage, coverage
from resdeploy.export.graph.float_layers import macs
from resdeploy.export.graph.placement import WEIGHTED, node_name, value_name
from resdeploy.export.mixed_precision.remedy import find_remedy
from resdeploy.export.quantization.recipe import QuantizationRecipe, read_recipe
from resdeploy.export.quantization.sensitivity import (
    TensorSensitivity,
    explain_tensors,
    sqnr_per_tensor,
)
from resdeploy.progress import Progress, silent
from resdeploy.report.contents import calibration_record

EXPLAINED_IMAGES = 16
REPORT_IMAGES = 8  # more golden images hardly change the order of the tensors
HISTOGRAMS = 4  # number of tensors with a histogram
BARS = 64  # number of bars of a histogram


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Result of `resdeploy explain` for one INT8 graph."""

    bundle: str
    encoding: Encoding
    is_worst: bool
    """True if no INT8 graph of the bundle has less agreement or, with equal agreement, a lower
    SQNR."""
    calibrator: str
    images: int
    sqnr_db: float
    """Median SQNR of the logits in dB with every tensor quantised."""
    coverage: Coverage
    """Nodes that run in integers, and nodes that do not."""
    layers: tuple[TensorSensitivity, ...]
    """Quantised tensors; the lowest SQNR comes first."""
    remedy: Remedy
    """Remedy that the export recorded or would find; it does not depend on `images`."""
    schema: str = "resdeploy.explanation/1"


def explain(
    bundle: Bundle,
    *,
    encoding: Encoding | None = None,
    images: int = EXPLAINED_IMAGES,
    progress: Progress = silent,
) -> Explanation:
    """Measure on `images` golden images how each tensor of an INT8 graph changes the logits.

    Without an `encoding`, the graph is the worst one: see `worst_int8`.

    Raises:
        BundleError: The bundle is damaged, or has no such graph.
    """
    worst = worst_int8(bundle.manifest.artifacts)
    if encoding is None:
        encoding = worst.encoding if worst else Encoding.TENSORRT
    artifact = bundle.artifact(graph_name("int8", encoding))
    quantised = ir.from_proto(onnx.load_from_string(bundle.read(artifact.file)))
    recipe = read_recipe(bundle, artifact.encoding)
    model = _fp32(bundle)
    golden = bundle.golden()
    pixels = golden.images[:images]
    total, layers = explain_tensors(model, recipe, pixels, progress)
    known = read_analysis(bundle)
    if known is not None and known.encoding is artifact.encoding:
        remedy = known.remedy
    else:  # as the export finds it, whatever `images` are
        record = calibration_record(bundle.manifest)
        sqnrs = sqnr_per_tensor(model, recipe, golden.images[:REPORT_IMAGES], progress)
        remedy = find_remedy(model, recipe, record, artifact, golden, sqnrs)
    return Explanation(
        bundle=str(bundle.path),
        encoding=artifact.encoding,
        is_worst=artifact == worst,
        calibrator=recipe.calibrator,
        images=len(pixels),
        sqnr_db=total,
        coverage=coverage(quantised.graph, artifact.encoding),
        layers=layers,
        remedy=remedy,
    )


def analyse(
    model: ir.Model,
    recipes: Mapping[Encoding, QuantizationRecipe],
    record: CalibrationRecord,
    artifacts: Sequence[Artifact],
    golden: Golden,
    progress: Progress,
    statistics: Mapping[str, TensorStatistics],
) -> Analysis:
    """Return the costs and noise of each layer of the worst INT8 graph, and what to do about it.

    There are histograms only of the tensors in `statistics`.
    """
    artifact = worst_int8(artifacts)
    assert artifact is not None
    recipe = recipes[artifact.encoding]
    sqnrs = sqnr_per_tensor(model, recipe, golden.images[:REPORT_IMAGES], progress)
    worst = [tensor for tensor in sqnrs if tensor in statistics][:HISTOGRAMS]
    return Analysis(
        encoding=artifact.encoding,
        remedy=find_remedy(model, recipe, record, artifact, golden, sqnrs),
        layers=layer_costs(model, recipes, recipe, sqnrs),
        histograms=tuple(
            histogram_of(tensor, statistics[tensor], recipe.ranges[tensor]) for tensor in worst
        ),
    )


def analyse_again(
    bundle: Bundle, artifacts: Sequence[Artifact], golden: Golden, progress: Progress
) -> Analysis | None:
    """Return the analysis of a bundle for other golden images; None if it has none.

    The histograms are those of the export, because the bundle has no other activations.
    """
    before = read_analysis(bundle)
    if before is None:
        return None
    encodings = {artifact.encoding for artifact in artifacts} - {Encoding.FLOAT}
    recipes = {encoding: read_recipe(bundle, encoding) for encoding in encodings}
    record = calibration_record(bundle.manifest)
    found = analyse(_fp32(bundle), recipes, record, artifacts, golden, progress, {})
    histograms = []
    for values in before.histograms:
        chosen = recipes[found.encoding].ranges[values.tensor]
        histograms.append(replace(values, range_low=chosen.low, range_high=chosen.high))
    return replace(found, histograms=tuple(histograms))


def _fp32(bundle: Bundle) -> ir.Model:
    return ir.from_proto(onnx.load_from_string(bundle.read("fp32.onnx")))


def layer_costs(
    model: ir.Model,
    recipes: Mapping[Encoding, QuantizationRecipe],
    recipe: QuantizationRecipe,
    sqnrs: Mapping[str, float],
) -> tuple[LayerCost, ...]:
    """Return the work and the SQNRs of convolutions and classifier, in the order of the graph."""
    edges = recipe.edges(model)
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
                for encoding, recipe in recipes.items()
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
