"""Accuracy against time: every setting that was tried, and the best that is fast enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from resdeploy.bundle.calibration_record import TradeOffPoint
from resdeploy.bundle.manifest import Encoding
from resdeploy.export.graph.layers import conv_share
from resdeploy.export.quantization.result import Calibration
from resdeploy.export.quantization.simulate import open_graph
from resdeploy.images.preprocessing import UInt8Array
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
) -> tuple[TradeOffPoint, ...]:
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
        TradeOffPoint(
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
            TradeOffPoint(
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
            TradeOffPoint(
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
    float_layers = {one.encoding: set(one.layers) for one in calibration.float_layers}
    return calibration.recipes[encoding].calibrator == calibrator and float_layers.get(
        encoding, set()
    ) == set(layers)
