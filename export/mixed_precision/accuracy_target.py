"""Mixed precision: the cheapest layers that, back in float, make the INT8 graph good enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import onnx_ir as ir

from resdeploy.bundle.calibration_record import FloatLayers
from resdeploy.export.graph.layers import Layer, layers_of, nodes_of
from resdeploy.export.mixed_precision.evaluator import (
    AccuracyTarget,
    HeldOutImages,
    MixedPrecisionEvaluator,
    draw_held_out_images,
)
from resdeploy.export.quantization.recipe import QuantizationRecipe
from resdeploy.export.quantization.result import Calibration, MixtureEvaluation
from resdeploy.export.source import Source
from resdeploy.progress import Progress


def mix(
    model: ir.Model,
    source: Source,
    calibration: Calibration,
    gate: AccuracyTarget,
    *,
    seed: int,
    golden_digests: Collection[str],
    progress: Progress,
) -> Calibration:
    """Hand layers of both encodings back to float until `gate` holds; each has half of the time.

    Raises:
        CalibrationError: no image is left to decide on, or the time is too short.
    """
    used = {*golden_digests, *calibration.digests, *calibration.selection_digests}
    held_out = draw_held_out_images(source, seed, used)
    recipes, float_layers, tried = {}, list[FloatLayers](), list[MixtureEvaluation]()
    for encoding, recipe in calibration.recipes.items():
        recipes[encoding], handback, mixtures = search(
            model, recipe, gate, held_out,
            seconds=gate.seconds / len(calibration.recipes), progress=progress,
        )  # fmt: skip
        float_layers.append(handback)
        tried += mixtures
    return replace(
        calibration,
        recipes=recipes,
        float_layers=tuple(float_layers),
        tried=tuple(tried),
        selection_digests=(*calibration.selection_digests, *held_out.digests),
    )


def search(
    model: ir.Model,
    recipe: QuantizationRecipe,
    gate: AccuracyTarget,
    held_out: HeldOutImages,
    *,
    seconds: float,
    progress: Progress,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[QuantizationRecipe, FloatLayers, tuple[MixtureEvaluation, ...]]:
    """Hand layers back to float, those first that buy most per cost, until the gate holds.

    A layer buys the noise that its tensors alone make at the logits. The shortest list of layers
    that holds the gate is found by bisection; then the costliest of them are taken back one by
    one, where the gate holds without. Should the time end first, the best list known does.

    Args:
        model: The FP32 graph.
        recipe: What is quantised so far.
        gate: What must hold.
        held_out: What it must hold on.
        seconds: No evaluation is begun that would end later than this.
        progress: Told of each evaluation.
        clock: Seconds, for tests.

    Returns:
        The recipe that holds the gate, what it gave up, and all that was tried.

    Raises:
        CalibrationError: `seconds` are too few for the first evaluation.
    """
    start = clock()
    layers = [
        layer for layer in layers_of(model, recipe.encoding) if not layer.nodes <= recipe.in_float
    ]
    with progress("searching", len(layers) + 8) as advance:
        evaluator = MixedPrecisionEvaluator(
            model, recipe, held_out, gate, start + seconds, clock, advance
        )
        before = chosen = evaluator.evaluate_first()
        given_back: list[Layer] = []
        out_of_time = False
        if not before.holds:
            ranked = evaluator.rank(layers)
            chosen = _all_float(before, ranked)
            fails, holds = 0, len(ranked)  # lengths of lists; all in float holds any gate
            while holds - fails > 1 and not out_of_time:
                # Mostly few are enough: the first lists are short, so that one is known early.
                length = min(max(1, 2 * fails), (fails + holds) // 2)
                outcome = evaluator.evaluate(ranked[:length])
                if outcome is None:
                    out_of_time = True
                elif outcome.holds:
                    holds, chosen = length, outcome
                else:
                    fails = length
            given_back = ranked[:holds]
        for layer in sorted(given_back, key=lambda layer: -layer.cost):
            fewer = [other for other in given_back if other != layer]
            outcome = None if out_of_time else evaluator.evaluate(fewer)
            if outcome is None:
                out_of_time = True
                break
            if outcome.holds:
                given_back, chosen = fewer, outcome
    handback = evaluator.handback(before, chosen, seconds=clock() - start, out_of_time=out_of_time)
    return (
        replace(recipe, in_float=recipe.in_float | chosen.nodes),
        handback,
        tuple(evaluator.tried),
    )


def _all_float(before: MixtureEvaluation, ranked: Sequence[Layer]) -> MixtureEvaluation:
    """What need not be evaluated."""
    return replace(
        before,
        layers=tuple(layer.name for layer in ranked),
        nodes=nodes_of(ranked),
        agreement=100.0,
        drop=0.0,
        holds=True,
    )
