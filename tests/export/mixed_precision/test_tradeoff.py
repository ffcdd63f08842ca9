"""Tests of the trade-off of accuracy and latency, and of the search for a latency target."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.bundle.calibration_record import TradeOffPoint
from resdeploy.bundle.manifest import Encoding
from resdeploy.errors import ExportError
from resdeploy.export.graph.to_onnx import to_onnx
from resdeploy.export.inputs import Source, read_source
from resdeploy.export.mixed_precision import tradeoff
from resdeploy.export.mixed_precision.evaluator import SearchContext
from resdeploy.export.mixed_precision.latency_target import meet_latency_target
from resdeploy.export.mixed_precision.tradeoff import measure_ms, trade_off_points
from resdeploy.export.pipeline import ExportConfig, export
from resdeploy.export.quantization.calibrate import calibrate
from resdeploy.export.quantization.held_out import draw_held_out_images
from resdeploy.export.quantization.result import Calibration
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.progress import silent
from resdeploy.report.contents import calibration_record
from resdeploy.train.model.resnet import Classifier
from tests.samples import CLASSES, SIZE


@pytest.fixture(scope="module")
def source(tiny_checkpoint: Path, image_data: Path) -> Source:
    source = read_source(tiny_checkpoint, image_size=SIZE, calibration_data=image_data)
    return dataclasses.replace(source, labels=CLASSES)


@pytest.fixture(scope="module")
def model(source: Source) -> ir.Model:
    prep = source.preprocessing
    classifier = Classifier(source.checkpoint.network(), prep)
    return to_onnx(classifier, SIZE)


@pytest.fixture(scope="module")
def calibration(model: ir.Model, source: Source) -> Calibration:
    return calibrate(
        model, source, calibrator="auto", images=32, seed=0, golden_digests=(), progress=silent
    )


def stopwatch(model: ir.Model, encoding: Encoding, image: UInt8Array) -> float:
    """Return 1 ms, and 1 ms more for each convolution whose input is not quantised."""
    assert image.shape == (1, SIZE, SIZE, 3)
    convolutions = [node for node in model.graph if node.op_type == "Conv"]
    quantised = [
        node
        for node in convolutions
        if (value := node.inputs[0]) is not None
        and (producer := value.producer()) is not None
        and producer.op_type == "DequantizeLinear"
    ]
    return 1.0 + len(convolutions) - len(quantised)


def meet(source: Source, calibration: Calibration, target_ms: float) -> Calibration:
    used = {*calibration.digests, *calibration.selection_digests}
    held_out = calibration.scoring.plus(draw_held_out_images(source, 0, 100, used=used))
    context = SearchContext(
        model=calibration.model, held_out=held_out, calibrating=calibration.rounding, seconds=600,
        progress=silent,
    )  # fmt: skip
    return meet_latency_target(calibration, target_ms, context, stopwatch)


def test_calibrators_share_a_latency_and_tensorrt_has_none(calibration: Calibration) -> None:
    image = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    points = trade_off_points(calibration, image, silent, stopwatch)
    by_encoding = {
        encoding: [point for point in points if point.encoding is encoding]
        for encoding in (Encoding.FLOAT, Encoding.CPU, Encoding.TENSORRT)
    }
    (fp32,) = by_encoding[Encoding.FLOAT]
    assert fp32.p50_ms is not None
    assert fp32.p50_ms > 1
    assert {point.p50_ms for point in by_encoding[Encoding.CPU]} == {1.0}
    assert {point.p50_ms for point in by_encoding[Encoding.TENSORRT]} == {None}
    for encoding in (Encoding.CPU, Encoding.TENSORRT):
        chosen = [point.calibrator for point in by_encoding[encoding] if point.chosen]
        assert chosen == [calibration.recipes[encoding].calibrator]


def test_the_graph_of_a_single_calibrator_has_a_latency(model: ir.Model, source: Source) -> None:
    alone = calibrate(
        model, source, calibrator="max", images=32, seed=0, golden_digests=(), progress=silent
    )
    image = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    points = trade_off_points(alone, image, silent, stopwatch)
    (cpu,) = (point for point in points if point.encoding is Encoding.CPU)
    assert (cpu.chosen, cpu.p50_ms, cpu.agreement, cpu.images) == (True, 1.0, None, 0)


def test_takes_the_most_accurate_mixture_that_is_fast_enough(
    source: Source, calibration: Calibration
) -> None:
    result = meet(source, calibration, 4.0)
    graph = result.recipes[Encoding.CPU].apply(result.model)
    assert stopwatch(graph, Encoding.CPU, np.zeros((1, SIZE, SIZE, 3), np.uint8)) <= 4
    assert len(result.evaluations) > 1
    assert all(mix.p50_ms is not None and mix.p50_ms <= 4 for mix in result.evaluations)
    (chosen,) = result.float_layers
    assert chosen.drop == min(mix.changes.drop for mix in result.evaluations)
    assert result.recipes[Encoding.TENSORRT] == calibration.recipes[Encoding.TENSORRT]
    assert set(calibration.selection_digests) < set(result.selection_digests)


def test_a_latency_target_that_int8_misses_keeps_all_layers_in_int8(
    source: Source, calibration: Calibration
) -> None:
    result = meet(source, calibration, 0.5)
    assert result.recipes == calibration.recipes
    (chosen,) = result.float_layers
    assert chosen.layers == ()


def test_latency_is_measured_in_milliseconds(
    model: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tradeoff, "TIMING_SECONDS", 0.01)
    image = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    # The bounds only exclude results in seconds or microseconds.
    assert 0.01 < measure_ms(model, Encoding.FLOAT, image) < 1000


@pytest.mark.slow
def test_an_export_records_all_evaluations(
    tiny_checkpoint: Path, image_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tradeoff, "TIMING_SECONDS", 0.01)
    config = ExportConfig(
        source=tiny_checkpoint,
        output=tmp_path / "x.bundle",
        image_size=SIZE,
        int8=True,
        calibration_data=image_data,
        calibration_images=32,
        target_ms=1000.0,
    )
    bundle = open_bundle(export(config).bundle)
    record = calibration_record(bundle.manifest)
    chosen = [point for point in record.points if point.chosen]
    assert {point.encoding for point in chosen} == {
        Encoding.FLOAT, Encoding.CPU, Encoding.TENSORRT,
    }  # fmt: skip
    in_float = json.loads(bundle.read("calibration.json"))["cpu"]["in_float"]
    (float_layers,) = record.float_layers
    assert bool(in_float) == bool(float_layers.layers)
    assert "Accuracy against latency" in bundle.read("report.html").decode()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"int8": False}, "--target-ms applies only to INT8 graphs"),
        ({"int8": True, "max_drop": 1.0}, "--target-ms cannot be combined"),
    ],
)
def test_rejects_a_latency_target_without_int8_or_with_an_accuracy_target(
    tiny_checkpoint: Path, options: dict[str, float], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        export(ExportConfig(source=tiny_checkpoint, target_ms=1.0, **options))  # type: ignore[arg-type]


def test_older_bundles_have_no_points(tiny_bundle: Bundle) -> None:
    calibration = {**(tiny_bundle.manifest.calibration or {})}
    del calibration["points"]
    manifest = dataclasses.replace(tiny_bundle.manifest, calibration=calibration)
    points: tuple[TradeOffPoint, ...] = calibration_record(manifest).points
    assert points == ()
