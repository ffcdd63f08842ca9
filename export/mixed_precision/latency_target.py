"""Latency target: the layers that the CPU's INT8 graph has the time to compute in float."""

from __future__ import annotations

from dataclasses import replace

from resdeploy.bundle.manifest import Encoding
from resdeploy.errors import ExportError
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
    enough, the most accurate is taken. Latency is that of one image on all cores of this machine.

    Raises:
        CalibrationError: The time is too short for the first evaluation.
        ExportError: The latency is higher even with all layers in INT8.
    """
    recipe = calibration.recipes[Encoding.CPU]
    layers = layers_of(context.model, Encoding.CPU)
    with context.progress("searching", len(layers) + 8) as advance:
        evaluator = MixedPrecisionEvaluator(context, recipe, advance)
        latencies: dict[frozenset[str], float] = {}

        def is_fast(nodes: frozenset[str]) -> bool:
            image = context.held_out.images[:1]
            latencies[nodes] = stopwatch(evaluator.mixture(nodes), Encoding.CPU, image)
            return latencies[nodes] <= target_ms

        if not is_fast(frozenset()):
            raise ExportError(
                f"int8-cpu.onnx takes {latencies[frozenset()]:.2f} ms on this machine with all "
                f"layers in INT8, and --target-ms allows {target_ms:g} ms",
                "increase --target-ms, or decrease --image-size",
            )
        evaluator.evaluate_all_int8()
        ranked = evaluator.rank(layers)
        fast, slow = 0, len(ranked) + 1  # lengths of lists that are fast enough and too slow
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
            evaluations, key=lambda mixture: (mixture.drop, -mixture.agreement, len(mixture.layers))
        )
    return replace(
        calibration,
        recipes={
            **calibration.recipes,
            Encoding.CPU: replace(recipe, in_float=recipe.in_float | best.nodes),
        },
        float_layers=(evaluator.float_layers(best, out_of_time=out_of_time),),
        evaluations=evaluations,
        selection_digests=(*calibration.selection_digests, *context.held_out.digests),
    )
