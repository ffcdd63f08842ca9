"""Accuracy target: the cheapest layers to keep in float so that the INT8 graphs are accurate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from resdeploy.bundle.calibration_record import FloatLayers
from resdeploy.changed_predictions import ExpectedChanges, agreement_bound, images_needed
from resdeploy.export.graph.float_layers import Layer, layers_of, nodes_of
from resdeploy.export.mixed_precision.evaluator import MixedPrecisionEvaluator, SearchContext
from resdeploy.export.quantization.recipe import QuantizationRecipe
from resdeploy.export.quantization.result import Calibration, MixtureEvaluation

# The judgement must show the target again, with 95 % confidence, on other images. A mixture that
# has just shown it on the images of the search does so in half of the cases at most. With this
# confidence it does in about 9 of 10: on 2,560 images and for 99 %, the search accepts 11 changes
# and the judgement 17, and 11 expected changes become more than 17 with a probability of 3 %; that
# 11 were found by chance doubles the variance.
SEARCH_CONFIDENCE = 0.999


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyTarget:
    """Limits that the accuracy of an INT8 graph against FP32 must meet."""

    min_agreement: float | None = None
    """Smallest share of images with FP32's predicted class, in percent."""
    max_drop: float | None = None
    """Largest loss of accuracy, in percentage points; without true classes, of agreement."""

    @property
    def is_set(self) -> bool:
        """Return True if there is a limit."""
        return self.min_agreement is not None or self.max_drop is not None

    @property
    def needed(self) -> dict[str, int | None]:
        """Fewest images that can show each limit, by the option that sets it; None if none can."""
        needed = {}
        if self.min_agreement is not None:
            needed[f"--min-agreement {self.min_agreement:g}"] = images_needed(self.min_agreement)
        if self.max_drop is not None:
            needed[f"--max-drop {self.max_drop:g}"] = images_needed(100 - self.max_drop)
        return needed

    def is_met_by(self, evaluation: MixtureEvaluation) -> bool:
        """Return True if the mixture will most likely be shown to be within all limits.

        With few images, no bound is within a limit. Then the changes that are expected on other
        images must be, and no class may change; or, on so few images that no judgement on as many
        can show the limit, the changes must not contradict it. An agreement of 100 % or a drop of 0
        is only asked of the images at hand: no graph with noise promises it of others.
        """
        changes, expected = evaluation.changes, evaluation.expected
        images = changes.images
        return (
            self.min_agreement is None
            or changes.lowest_agreement(SEARCH_CONFIDENCE) >= self.min_agreement
            or _is_likely(self.min_agreement, expected.agreement, changes.changed, images)
        ) and (
            self.max_drop is None
            or changes.highest_drop(SEARCH_CONFIDENCE) <= self.max_drop
            or _is_likely(100 - self.max_drop, 100 - expected.drop, changes.lost, images)
        )


def _is_likely(limit: float, expected: float, violations: int, images: int) -> bool:
    """Return True if few images make it likely that others are within a limit.

    Args:
        limit: Smallest share of images that keep their class, in percent.
        expected: Estimate of this share on other images, in percent.
        violations: Number of images that do not keep it.
        images: Number of all images.
    """
    if limit == 100:
        return not violations
    if images >= (images_needed(limit) or 0):
        return not violations and expected >= limit
    return expected >= limit and agreement_bound(violations, images) >= limit


def meet_accuracy_target(
    calibration: Calibration, target: AccuracyTarget, context: SearchContext
) -> Calibration:
    """Keep layers of each encoding in float until `target` is met; each has half of the time."""
    share = replace(context, seconds=context.seconds / len(calibration.recipes))
    recipes, float_layers, evaluations = {}, list[FloatLayers](), list[MixtureEvaluation]()
    for encoding, recipe in calibration.recipes.items():
        recipes[encoding], chosen, evaluated = find_float_layers(recipe, target, share)
        float_layers.append(chosen)
        evaluations += evaluated
    return replace(
        calibration,
        recipes=recipes,
        float_layers=tuple(float_layers),
        evaluations=tuple(evaluations),
        selection_digests=context.held_out.digests,
    )


def find_float_layers(
    recipe: QuantizationRecipe, target: AccuracyTarget, context: SearchContext
) -> tuple[QuantizationRecipe, FloatLayers, tuple[MixtureEvaluation, ...]]:
    """Find a short list of layers that must stay in float so that the graph meets `target`.

    Layers are ranked by the noise at the logits that each alone causes, divided by its cost. The
    shortest list from the top of the ranking is found by bisection; then its layers revert to INT8
    one by one, the costliest first, if the target is still met. If the time ends earlier, the best
    list found so far is taken.

    Returns:
        Recipe that meets the target, record of its layers in float, and all evaluations.
    """
    layers = [
        layer
        for layer in layers_of(context.model, recipe.encoding)
        if not layer.nodes <= recipe.in_float
    ]
    with context.progress("searching layers to keep in float", len(layers) + 8) as advance:
        evaluator = MixedPrecisionEvaluator(context, recipe, advance)
        chosen = evaluator.evaluate_all_int8()
        in_float: list[Layer] = []
        out_of_time = False
        if not target.is_met_by(chosen):
            ranked = evaluator.rank(layers)
            chosen = _all_in_float(chosen, ranked)
            too_short, long_enough = 0, len(ranked)  # a graph in float meets any target
            while long_enough - too_short > 1 and not out_of_time:
                # A few layers usually suffice. Lists grow from 1 layer, so that a short list is
                # known early.
                length = min(max(1, 2 * too_short), (too_short + long_enough) // 2)
                evaluation = evaluator.evaluate(ranked[:length])
                if evaluation is None:
                    out_of_time = True
                elif target.is_met_by(evaluation):
                    long_enough, chosen = length, evaluation
                else:
                    too_short = length
            in_float = ranked[:long_enough]
        for layer in sorted(in_float, key=lambda layer: -layer.cost):
            fewer = [other for other in in_float if other != layer]
            evaluation = None if out_of_time else evaluator.evaluate(fewer)
            if evaluation is None:
                out_of_time = True
                break
            if target.is_met_by(evaluation):
                in_float, chosen = fewer, evaluation
    return (
        replace(recipe, in_float=recipe.in_float | chosen.nodes),
        evaluator.float_layers(chosen, out_of_time=out_of_time),
        tuple(evaluator.evaluations.values()),
    )


def _all_in_float(all_int8: MixtureEvaluation, layers: Sequence[Layer]) -> MixtureEvaluation:
    """Return the evaluation with all layers in float, which is known without running the graph."""
    return replace(
        all_int8,
        layers=tuple(layer.name for layer in layers),
        nodes=nodes_of(layers),
        changes=replace(all_int8.changes, changed=0, lost=0, gained=0),
        expected=ExpectedChanges(100.0, 0.0),
    )
