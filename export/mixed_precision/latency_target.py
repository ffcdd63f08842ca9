"""Latency target: the layers that the CPU's INT8 graph has the time to compute in float."""

from __future__ import annotations

from dataclasses import replace

from resdeploy.bundle.manifest import Encoding
from resdeploy.export.graph.float_layers import layers_of, nodes_of
from resdeploy.export.mixed_precision.evaluator import MixedPrecisionEvaluator, SearchContext
from resdeploy.export.mixed_precision.tradeoff import Stopwatch, measure_ms
from resdeploy.export.quantization.result import Calibration


def meet_latency_target(
    calibration: Calibration,
    target_ms: float,
    context: SearchContext,
    stopwatch: Stopwatch = measure_ms,
) -> Calibration:
    """Keep layers of the CPU's graph in float as long as its latency is at most `target_ms`.

    Layers are ranked by the noise at the logits that each alone causes, divided by its cost. The
    longest list that is fast enough is found by bisection. Of all evaluated mixtures that are fast
    enough, the most accurate is taken.

    The latency is that of one image with all cores of this machine. If it is higher even with all
    layers in INT8, they stay so.
    """
    recipe = calibration.recipes[Encoding.CPU]
    layers = layers_of(context.model, Encoding.CPU)
    with context.progress("searching layers to keep in float", len(layers) + 8) as advance:
        evaluator = MixedPrecisionEvaluator(context, recipe, advance)
        latencies: dict[frozenset[str], float] = {}

        def is_fast(nodes: frozenset[str]) -> bool:
            image = context.held_out.images[:1]
            latencies[nodes] = stopwatch(evaluator.mixture(nodes), Encoding.CPU, image)
            return latencies[nodes] <= target_ms

        evaluator.evaluate_all_int8()
        ranked = evaluator.rank(layers) if is_fast(frozenset()) else []
        fast, slow = 0, len(ranked) + 1  # lengths of lists
        out_of_time = False
        while slow - fast > 1 and not out_of_time:
            length = (fast + slow) // 2
            if is_fast(nodes_of(ranked[:length])):
                fast = length
                out_of_time = evaluator.evaluate(ranked[:length]) is None
            else:
                slow = length
        evaluations = tuple(
            replace(mixture, p50_ms=latencies[nodes])
            for nodes, mixture in evaluator.evaluations.items()
        )
        best = min(
            evaluations,
            key=lambda mixture: (
                mixture.changes.drop, mixture.changes.changed, len(mixture.layers)
            ),
        )  # fmt: skip
    return replace(
        calibration,
        recipes={
            **calibration.recipes,
            Encoding.CPU: replace(recipe, in_float=recipe.in_float | best.nodes),
        },
        float_layers=(evaluator.float_layers(best, out_of_time=out_of_time),),
        evaluations=evaluations,
        selection_digests=context.held_out.digests,
    )
