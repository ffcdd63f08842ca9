"""TODO."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace

import onnx_ir as ir

from resdeploy.bundle.manifest import Encoding
from resdeploy.errors import ExportError
from resdeploy.export.graph.layers import layers_of, nodes_of
from resdeploy.export.mixed_precision.evaluator import (
    AccuracyTarget,
    MixedPrecisionEvaluator,
    draw_held_out_images,
)
from resdeploy.export.mixed_precision.tradeoff import Stopwatch, measure_ms
from resdeploy.export.quantization.result import Calibration
from resdeploy.export.source import Source
from resdeploy.progress import Progress


def fit_time(
    model: ir.Model,
    source: Source,
    calibration: Calibration,
    target_ms: float,
    *,
    seconds: float,
    seed: int,
    golden_digests: Collection[str],
    progress: Progress,
    stopwatch: Stopwatch = measure_ms,
) -> Calibration:
    """Hand layers of the CPU's graph back to float for as long as it takes at most `target_ms`.

    Those come first that buy most accuracy per cost. The longest list that is fast enough is found
    by bisection; of all that were tried and are fast enough, the most accurate one is taken.

    Args:
        model: The FP32 graph.
        source: Where the images come from that accuracy is found on.
        calibration: Ranges.
        target_ms: For one image, with all cores of this machine.
        seconds: No evaluation is begun that would end later than this.
        seed: Decides which images.
        golden_digests: Images that must not be used.
        progress: Told of each evaluation.
        stopwatch: Milliseconds of a graph; for tests.

    Raises:
        CalibrationError: no image is left, or the time is too short.
        ExportError: even with everything in INT8 it takes longer.
    """
    used = {*golden_digests, *calibration.digests, *calibration.selection_digests}
    held_out = draw_held_out_images(source, seed, used)
    recipe = calibration.recipes[Encoding.CPU]
    layers = layers_of(model, Encoding.CPU)
    start, clock = time.monotonic(), time.monotonic

    def took(nodes: frozenset[str]) -> float:
        graph = replace(recipe, in_float=nodes).apply(model)
        return stopwatch(graph, Encoding.CPU, held_out.images[:1])

    times = {frozenset[str](): took(frozenset())}
    if times[frozenset()] > target_ms:
        raise ExportError(
            f"int8-cpu.onnx takes {times[frozenset()]:.2f} ms here with everything in INT8, more "
            f"than --target-ms {target_ms:g}",
            "allow more, or take a smaller --image-size",
        )
    with progress("searching", len(layers) + 8) as advance:
        evaluator = MixedPrecisionEvaluator(
            model, recipe, held_out, AccuracyTarget(), start + seconds, clock, advance
        )
        before = evaluator.evaluate_first()
        ranked = evaluator.rank(layers)
        low, high = 0, len(ranked) + 1  # the longest that fits, the shortest that does not
        out_of_time = False
        while high - low > 1 and not out_of_time:
            middle = (low + high) // 2
            nodes = nodes_of(ranked[:middle])
            times[nodes] = took(nodes)
            if times[nodes] > target_ms:
                high = middle
            else:
                low, out_of_time = middle, evaluator.evaluate(ranked[:middle]) is None
        tried = tuple(replace(one, p50_ms=times[one.nodes]) for one in evaluator.tried)
        best = min(tried, key=lambda one: (one.drop, -one.agreement, len(one.layers)))
        took_s = clock() - start
        handback = evaluator.handback(before, best, seconds=took_s, out_of_time=out_of_time)
    return replace(
        calibration,
        recipes={**calibration.recipes, Encoding.CPU: replace(recipe, in_float=best.nodes)},
        float_layers=(handback,),
        tried=tried,
        selection_digests=(*calibration.selection_digests, *held_out.digests),
    )
