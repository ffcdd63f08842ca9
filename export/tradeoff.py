"""Accuracy against time: every setting that was tried, and the best that is fast enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from resdeploy.bundle import Encoding
from resdeploy.calibration.record import Point
from resdeploy.errors import ExportError
from resdeploy.export.calibrate import Calibration
from resdeploy.export.handback import conv_share, layers_of, nodes_of
from resdeploy.export.laboratory import Gate, Laboratory, gate_images
from resdeploy.export.simulate import open_graph
from resdeploy.export.source import Source
from resdeploy.preprocessing import UInt8Array
from resdeploy.progress import Progress

SECONDS, FEWEST_RUNS = 0.3, 5
MOST_TIMED = 8  # mixtures, each of which takes about a second
FP32 = "fp32"

Stopwatch = Callable[[ir.Model, Encoding, UInt8Array], float]


def measure_ms(model: ir.Model, encoding: Encoding, image: UInt8Array) -> float:
    """Median time of `image`, (1, H, W, 3), on ONNX Runtime's CPU provider with all cores."""
    backend = open_graph(model, encoding)
    for _ in range(FEWEST_RUNS):
        backend.run(image)  # the first ones are slower
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < FEWEST_RUNS or time.perf_counter() < end:
        start = time.perf_counter_ns()
        backend.run(image)
        times.append((time.perf_counter_ns() - start) / 1e6)
    backend.close()
    return float(np.median(times))


def trade_off(
    model: ir.Model,
    calibration: Calibration,
    image: UInt8Array,
    progress: Progress,
    stopwatch: Stopwatch = measure_ms,
) -> tuple[Point, ...]:
    """FP32, and every calibrator and mixture that was tried, with times of the CPU's graphs.

    Calibrators share one time: ranges do not change the graph. TensorRT's graph has none, for
    nothing but TensorRT runs it fast.

    Args:
        model: The FP32 graph.
        calibration: What was tried and chosen.
        image: One image, (1, H, W, 3).
        progress: Told of each graph that is timed.
        stopwatch: Milliseconds of a graph; for tests.
    """
    recipe = calibration.recipes[Encoding.CPU]
    mixtures = [one for one in calibration.tried if one.encoding is Encoding.CPU]
    known = {one.nodes: one.p50_ms for one in mixtures if one.p50_ms is not None}
    latest = [one.nodes for one in mixtures[-MOST_TIMED:]]  # they are the nearest to the choice
    wanted = {frozenset[str](), recipe.in_float, *latest} - known.keys()
    with progress("timing", 1 + len(wanted)) as advance:
        for nodes in wanted:
            graph = replace(recipe, in_float=nodes).apply(model)
            known[nodes] = stopwatch(graph, Encoding.CPU, image)
            advance(1)
        fp32_ms = stopwatch(model, Encoding.FLOAT, image)
        advance(1)
    points = [
        Point(
            encoding=Encoding.FLOAT,
            calibrator=FP32,
            layers=(),
            float_share_percent=100.0,
            agreement=100.0,
            drop=0.0,
            images=calibration.scoring_images,
            p50_ms=fp32_ms,
            chosen=True,
        )
    ]
    for score in calibration.scores:
        on_cpu = score.encoding is Encoding.CPU
        points.append(
            Point(
                encoding=score.encoding,
                calibrator=score.calibrator,
                layers=(),
                float_share_percent=0.0,
                agreement=score.agreement,
                drop=None,
                images=calibration.scoring_images,
                p50_ms=known[frozenset()] if on_cpu else None,
                chosen=_chosen(calibration, score.encoding, score.calibrator, ()),
            )
        )
    for one in calibration.tried:
        calibrator = calibration.recipes[one.encoding].calibrator
        points.append(
            Point(
                encoding=one.encoding,
                calibrator=calibrator,
                layers=one.layers,
                float_share_percent=100 * conv_share(model, one.nodes)[1],
                agreement=one.agreement,
                drop=one.drop,
                images=one.images,
                p50_ms=known.get(one.nodes) if one.encoding is Encoding.CPU else None,
                chosen=_chosen(calibration, one.encoding, calibrator, one.layers),
            )
        )
    return tuple(points)


def _chosen(
    calibration: Calibration, encoding: Encoding, calibrator: str, layers: Collection[str]
) -> bool:
    handed_back = {one.encoding: set(one.layers) for one in calibration.handbacks}
    return calibration.recipes[encoding].calibrator == calibrator and handed_back.get(
        encoding, set()
    ) == set(layers)


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
    held_out = gate_images(source, seed, used)
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
        lab = Laboratory(model, recipe, held_out, Gate(), start + seconds, clock, advance)
        before = lab.evaluate_first()
        ranked = lab.rank(layers)
        low, high = 0, len(ranked) + 1  # the longest that fits, the shortest that does not
        out_of_time = False
        while high - low > 1 and not out_of_time:
            middle = (low + high) // 2
            nodes = nodes_of(ranked[:middle])
            times[nodes] = took(nodes)
            if times[nodes] > target_ms:
                high = middle
            else:
                low, out_of_time = middle, lab.evaluate(ranked[:middle]) is None
        tried = tuple(replace(one, p50_ms=times[one.nodes]) for one in lab.tried)
        best = min(tried, key=lambda one: (one.drop, -one.agreement, len(one.layers)))
        took_s = clock() - start
        handback = lab.handback(before, best, seconds=took_s, out_of_time=out_of_time)
    return replace(
        calibration,
        recipes={**calibration.recipes, Encoding.CPU: replace(recipe, in_float=best.nodes)},
        handbacks=(handback,),
        tried=tried,
        selection_digests=(*calibration.selection_digests, *held_out.digests),
    )
