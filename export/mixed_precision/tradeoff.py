"""Trade-off of accuracy and latency: one point for each graph that an export evaluated."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from resdeploy.bundle.calibration_record import Score, TradeOffPoint
from resdeploy.bundle.manifest import Encoding
from resdeploy.export.graph.float_layers import conv_share
from resdeploy.export.quantization.result import Calibration, MixtureEvaluation
from resdeploy.export.quantization.simulate import open_graph
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.progress import Progress

TIMING_SECONDS, MIN_RUNS = 0.3, 5
MAX_TIMED = 8  # number of mixtures; timing one takes about a second
FP32 = "fp32"

Stopwatch = Callable[[ir.Model, Encoding, UInt8Array], float]
"""Function that returns the latency of a graph for one image (1, H, W, 3), in ms."""


def measure_ms(model: ir.Model, encoding: Encoding, image: UInt8Array) -> float:
    """Measure the median latency of `image` (1, H, W, 3) with ONNX Runtime on all cores, in ms."""
    backend = open_graph(model, encoding)
    for _ in range(MIN_RUNS):
        backend.run(image)  # warm-up
    times: list[float] = []
    end = time.perf_counter() + TIMING_SECONDS
    while len(times) < MIN_RUNS or time.perf_counter() < end:
        start = time.perf_counter_ns()
        backend.run(image)
        times.append((time.perf_counter_ns() - start) / 1e6)
    backend.close()
    return float(np.median(times))


def trade_off_points(
    calibration: Calibration,
    image: UInt8Array,
    progress: Progress,
    stopwatch: Stopwatch = measure_ms,
) -> tuple[TradeOffPoint, ...]:
    """Return points with the CPU graphs' latencies: FP32, every calibrator and every mixture.

    Latencies are measured with `image` (1, H, W, 3). All calibrators have the same latency, because
    ranges do not change the speed. TensorRT's graphs have no latency: only TensorRT runs them fast.
    """
    model, recipe = calibration.model, calibration.recipes[Encoding.CPU]
    mixtures = [mixture for mixture in calibration.evaluations if mixture.encoding is Encoding.CPU]
    latencies = {
        mixture.nodes: mixture.p50_ms for mixture in mixtures if mixture.p50_ms is not None
    }
    latest = [mixture.nodes for mixture in mixtures[-MAX_TIMED:]]  # most similar to the chosen one
    wanted = {frozenset[str](), recipe.in_float, *latest} - latencies.keys()
    with progress("timing graphs", 1 + len(wanted)) as advance:
        for nodes in wanted:
            quantised = replace(recipe, in_float=nodes).apply(model)
            latencies[nodes] = stopwatch(quantised, Encoding.CPU, image)
            advance(1)
        fp32_ms = stopwatch(model, Encoding.FLOAT, image)
        advance(1)
    in_float = {chosen.encoding: chosen.layers for chosen in calibration.float_layers}
    scored = len(calibration.scoring.images)
    points = [
        TradeOffPoint(
            encoding=Encoding.FLOAT, calibrator=FP32, layers=(), float_share_percent=100.0,
            agreement=100.0, drop=0.0, images=scored, p50_ms=fp32_ms, chosen=True,
        )
    ]  # fmt: skip
    graphs: tuple[Score | MixtureEvaluation, ...] = (*calibration.scores, *calibration.evaluations)
    for graph in graphs:
        used = calibration.recipes[graph.encoding].calibrator
        if isinstance(graph, Score):
            nodes, layers, calibrator = frozenset[str](), tuple[str, ...](), graph.calibrator
            agreement, drop, images = graph.agreement, None, scored
        else:
            nodes, layers, calibrator, changes = graph.nodes, graph.layers, used, graph.changes
            agreement, drop, images = changes.agreement, changes.drop, changes.images
        points.append(
            TradeOffPoint(
                encoding=graph.encoding,
                calibrator=calibrator,
                layers=layers,
                float_share_percent=100 * conv_share(model, nodes)[1],
                agreement=agreement,
                drop=drop,
                images=images,
                p50_ms=latencies.get(nodes) if graph.encoding is Encoding.CPU else None,
                chosen=calibrator == used and {*layers} == {*in_float.get(graph.encoding, ())},
            )
        )
    if not any(point.chosen and point.encoding is Encoding.CPU for point in points):
        points.append(  # no images chose it: there was one calibrator, and no search
            TradeOffPoint(
                encoding=Encoding.CPU, calibrator=recipe.calibrator,
                layers=tuple(in_float.get(Encoding.CPU, ())), agreement=None, drop=None, images=0,
                float_share_percent=100 * conv_share(model, recipe.in_float)[1],
                p50_ms=latencies[recipe.in_float], chosen=True,
            )
        )  # fmt: skip
    return tuple(points)
