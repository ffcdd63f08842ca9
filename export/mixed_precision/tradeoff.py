"""Trade-off of accuracy and latency: one point for each graph that an export evaluated."""

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

TIMING_SECONDS, MIN_RUNS = 0.3, 5
MAX_TIMED = 8  # mixtures; timing one takes about a second
FP32 = "fp32"

Stopwatch = Callable[[ir.Model, Encoding, UInt8Array], float]
"""Function that returns the latency of a graph for one image (1, H, W, 3), in ms."""


def measure_ms(model: ir.Model, encoding: Encoding, image: UInt8Array) -> float:
    """Measure the median latency of `image` (1, H, W, 3) on ONNX Runtime's CPU provider, in ms.

    All cores are used.
    """
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
    """Return a point for FP32, every calibrator and every mixture, with the CPU graphs' latencies.

    All calibrators have the same latency, because ranges do not change the graph. TensorRT's graphs
    have none, because only TensorRT runs them fast.

    Args:
        calibration: Calibrators and mixtures that were evaluated and chosen.
        image: One image, (1, H, W, 3).
        progress: Progress display, advanced after each graph.
        stopwatch: Function that measures the latency of a graph in ms.
    """
    model, recipe = calibration.model, calibration.recipes[Encoding.CPU]
    mixtures = [mixture for mixture in calibration.evaluations if mixture.encoding is Encoding.CPU]
    latencies = {
        mixture.nodes: mixture.p50_ms for mixture in mixtures if mixture.p50_ms is not None
    }
    latest = [
        mixture.nodes for mixture in mixtures[-MAX_TIMED:]
    ]  # the most similar to the chosen one
    wanted = {frozenset[str](), recipe.in_float, *latest} - latencies.keys()
    with progress("timing", 1 + len(wanted)) as advance:
        for nodes in wanted:
            graph = replace(recipe, in_float=nodes).apply(model)
            latencies[nodes] = stopwatch(graph, Encoding.CPU, image)
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
                p50_ms=latencies[frozenset()] if on_cpu else None,
                chosen=_is_chosen(calibration, score.encoding, score.calibrator, ()),
            )
        )
    for mixture in calibration.evaluations:
        calibrator = calibration.recipes[mixture.encoding].calibrator
        points.append(
            TradeOffPoint(
                encoding=mixture.encoding,
                calibrator=calibrator,
                layers=mixture.layers,
                float_share_percent=100 * conv_share(model, mixture.nodes)[1],
                agreement=mixture.agreement,
                drop=mixture.drop,
                images=mixture.images,
                p50_ms=latencies.get(mixture.nodes) if mixture.encoding is Encoding.CPU else None,
                chosen=_is_chosen(calibration, mixture.encoding, calibrator, mixture.layers),
            )
        )
    return tuple(points)


def _is_chosen(
    calibration: Calibration, encoding: Encoding, calibrator: str, layers: Collection[str]
) -> bool:
    in_float = {chosen.encoding: set(chosen.layers) for chosen in calibration.float_layers}
    return calibration.recipes[encoding].calibrator == calibrator and in_float.get(
        encoding, set()
    ) == set(layers)
