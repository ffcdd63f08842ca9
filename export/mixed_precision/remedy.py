"""Remedy against the quantisation noise of an INT8 graph: the options, and what they gain."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from resdeploy.bundle.analysis import FloatMixture, Remedy
from resdeploy.bundle.calibration_record import CalibrationRecord
from resdeploy.bundle.golden import Golden
from resdeploy.bundle.manifest import Artifact, Encoding, Parity, Quality
from resdeploy.bundle.quality import (
    ENOUGH_AGREEMENT,
    ENOUGH_IMAGES,
    ENOUGH_SQNR_DB,
    IN_FLOAT,
    MIN_AGREEMENT,
    NO_INT8_SHORTCUTS,
    QAT,
    QualityLimits,
    export_figures,
    is_below,
)
from resdeploy.export.graph.float_layers import Layer, conv_share, layers_of, nodes_of
from resdeploy.export.graph.qdq import Weights
from resdeploy.export.mixed_precision.tradeoff import Stopwatch, measure_ms
from resdeploy.export.quantization.calibrate import LEARNED
from resdeploy.export.quantization.recipe import QuantizationRecipe
from resdeploy.export.quantization.simulate import run_graph, sites_of
from resdeploy.statistics import agreement_percent, ratio_interval, sqnr_db

MAX_FLOAT_SHARE = 0.5  # with more of the products in float, INT8 gains little speed over FP16
# The ranges of `image-99` are quantiles over images; below 100 images, they are the largest values.
FEW_IMAGES = 100
DEFAULT_IMAGES = 512  # of --calibration-images
SECONDS = 60.0
LATENCY_ROUNDS = 5  # of 0.3 s for each of two graphs, in turns: the load of the machine changes
ENOUGH = QualityLimits(agreement=ENOUGH_AGREEMENT, sqnr_db=ENOUGH_SQNR_DB)
MORE_CALIBRATION = f"--calibration-images {DEFAULT_IMAGES}"
MORE_IMAGES = "--calibration-data FOLDER_WITH_MORE_IMAGES"


@dataclass(frozen=True, slots=True)
class _Simulator:
    """Simulator of the graph with more layers in float, on the golden images."""

    model: ir.Model
    recipe: QuantizationRecipe
    artifact: Artifact
    golden: Golden
    weights: Weights
    candidates: int

    def graph(self, layers: Sequence[Layer]) -> ir.Model:
        in_float = self.recipe.in_float | nodes_of(layers)
        return replace(self.recipe, in_float=in_float).apply(self.model, weights=self.weights)

    def run(self, layers: Sequence[Layer]) -> FloatMixture:
        logits = run_graph(self.graph(layers), self.recipe.encoding, self.golden.images)
        nodes = self.recipe.in_float | nodes_of(layers)
        return FloatMixture(
            layers=tuple(layer.name for layer in layers),
            candidates=self.candidates,
            float_share_percent=100 * conv_share(self.model, nodes)[1],
            agreement=agreement_percent(self.golden.logits, logits),
            sqnr_db=float(np.median(sqnr_db(self.golden.logits, logits))),
            latency_ratio=None,
            latency_ratio_low=None,
            latency_ratio_high=None,
        )

    def is_enough(self, mixture: FloatMixture) -> bool:
        """Compare with the limits; at 99 %, one of 32 images or more changes in 28 % of draws."""
        parity, agreement = self.artifact.parity, mixture.agreement
        return not is_below(replace(parity, agreement=agreement, sqnr_db=mixture.sqnr_db), ENOUGH)


def find_remedy(
    model: ir.Model,
    recipe: QuantizationRecipe,
    record: CalibrationRecord,
    artifact: Artifact,
    golden: Golden,
    sqnrs: Mapping[str, float],
    *,
    seconds: float = SECONDS,
    stopwatch: Stopwatch = measure_ms,
) -> Remedy:
    """Return what to do against the noise of the INT8 graph that `recipe` makes of `model`.

    Layers are ranked by the noise of their tensors divided by their cost. The shortest list from
    the top that makes the graph accurate enough is found by simulation on the golden images. The
    first simulation is made even if it takes more than `seconds`.

    `artifact` has the figures at the export, `sqnrs` the SQNR in dB with one tensor quantised.
    """
    # The mixtures below are measured on the golden images, so the SQNR before is theirs, too.
    found = replace(export_figures(artifact)[0], sqnr_db=artifact.parity.sqnr_db)
    remedy = Remedy(
        encoding=recipe.encoding,
        options=(),
        images=found.images,
        origin=None if artifact.quality is None else artifact.quality.origin,
        agreement=found.agreement,
        sqnr_db=found.sqnr_db,
    )
    if not is_below(found, ENOUGH) or _shows_agreement(found):
        return remedy
    options = _calibration_options(record, recipe, len(golden.images))
    if MORE_CALIBRATION in options:  # it costs no speed, and more images judge the result
        return replace(remedy, options=tuple(options))
    retraining = [] if recipe.calibrator == LEARNED else [QAT]
    layers = [
        layer for layer in layers_of(model, recipe.encoding) if not layer.nodes <= recipe.in_float
    ]
    if recipe.encoding is Encoding.DLA or not layers:  # the DLA's graph keeps no layer in float
        return replace(remedy, options=(*options, *retraining) or (IN_FLOAT,))
    weights = recipe.weights(model)
    simulator = _Simulator(model, recipe, artifact, golden, weights, len(layers))
    mixture = None
    shortcuts = [layer for layer in layers if layer.kind == "shortcut"]
    if recipe.encoding is Encoding.TENSORRT and shortcuts:
        mixture = simulator.run(shortcuts)
        options.append(NO_INT8_SHORTCUTS)
    if mixture is None or not simulator.is_enough(mixture):
        ranked = _rank(model, recipe, layers, sqnrs)
        mixture, layers, sufficient = _shortest(simulator, ranked, seconds)
        if not sufficient:
            options += retraining
        elif not _has_target(record, recipe.encoding):
            options.append(MIN_AGREEMENT)
    else:
        layers, sufficient = shortcuts, True
    if recipe.encoding is Encoding.CPU:
        before, after = simulator.graph(()), simulator.graph(layers)
        times = [
            [stopwatch(graph, Encoding.CPU, golden.images[:1]) for graph in (before, after)]
            for _ in range(LATENCY_ROUNDS)
        ]
        ratio, low, high = ratio_interval(*np.array(times).T[::-1])
        mixture = replace(
            mixture, latency_ratio=ratio, latency_ratio_low=low, latency_ratio_high=high
        )
    return replace(remedy, options=tuple(options), mixture=mixture, sufficient=sufficient)


def _shows_agreement(found: Parity | Quality) -> bool:
    """Return True if enough judged images keep their class, whatever the SQNR of golden images is.

    More layers in float would then gain nothing that these images show.
    """
    return found.images >= ENOUGH_IMAGES and found.agreement >= ENOUGH.agreement


def _has_target(record: CalibrationRecord, encoding: Encoding) -> bool:
    """Return True if the export had a target at least as strict as the one that would be named."""
    return any(
        target.encoding is encoding and target.option == "--min-agreement"
        and target.limit >= ENOUGH_AGREEMENT for target in record.targets
    )  # fmt: skip


def _calibration_options(
    record: CalibrationRecord, recipe: QuantizationRecipe, golden: int
) -> list[str]:
    """Return options of a better calibration, which costs no speed."""
    if recipe.calibrator == LEARNED:
        return []
    # `--calibrator percentile` compares percentiles, but no other rule.
    rules = {score.calibrator.partition("-")[0] for score in record.scores}
    options = [] if len(rules) > 1 else ["--calibrator auto"]
    # Those that compared the rules, and the golden images, do not calibrate.
    usable = min(record.available - record.scoring_images - golden, DEFAULT_IMAGES)
    if usable >= max(2 * record.images, FEW_IMAGES):
        options.append(MORE_CALIBRATION)
    elif record.images < FEW_IMAGES:
        options.append(MORE_IMAGES)
    return options


def _rank(
    model: ir.Model,
    recipe: QuantizationRecipe,
    layers: Sequence[Layer],
    sqnrs: Mapping[str, float],
) -> list[Layer]:
    """Sort layers by the noise that they avoid in float, divided by their cost.

    The noise of a tensor is divided among the nodes that read it.
    """
    sites = sites_of(model, recipe)
    readers = Counter(site.tensor for site in sites)

    def merit(layer: Layer) -> float:
        without = replace(recipe, in_float=recipe.in_float | layer.nodes)
        removed = sites - sites_of(model, without)
        noise = (10 ** (-sqnrs[site.tensor] / 10) / readers[site.tensor] for site in removed)
        return sum(noise) / layer.cost

    return sorted(layers, key=merit, reverse=True)


def _shortest(
    simulator: _Simulator, ranked: Sequence[Layer], seconds: float
) -> tuple[FloatMixture, list[Layer], bool]:
    """Return the shortest list of layers that is enough, or the longest that is cheap enough.

    The last value is True if the list is enough.
    """
    start = time.monotonic()
    longest = 1
    while (
        longest < len(ranked)
        and conv_share(simulator.model, nodes_of(ranked[: longest + 1]))[1] <= MAX_FLOAT_SHARE
    ):
        longest += 1
    best = simulator.run(ranked[:longest])
    slowest = time.monotonic() - start
    sufficient = simulator.is_enough(best)
    too_short, enough = 0, longest
    while sufficient and enough - too_short > 1:
        if time.monotonic() + slowest > start + seconds:
            break
        # A few layers usually suffice, so the lists grow from 1 layer.
        length = min(max(1, 2 * too_short), (too_short + enough) // 2)
        mixture = simulator.run(ranked[:length])
        if simulator.is_enough(mixture):
            enough, best = length, mixture
        else:
            too_short = length
    return best, list(ranked[:enough]), sufficient
