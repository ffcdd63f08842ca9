"""Handing layers back until a gate holds, in the time that was given."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.bundle.manifest import Encoding
from resdeploy.calibration.ranges import Range
from resdeploy.cli.export import export_text
from resdeploy.errors import CalibrationError, ExportError
from resdeploy.export import pipeline
from resdeploy.export.graph.layers import Layer
from resdeploy.export.graph.to_onnx import to_bytes
from resdeploy.export.mixed_precision.accuracy_target import search
from resdeploy.export.mixed_precision.evaluator import (
    AccuracyTarget,
    HeldOutImages,
    MixedPrecisionEvaluator,
    draw_held_out_images,
)
from resdeploy.export.pipeline import ExportConfig, export
from resdeploy.export.quantization.calibrate import calibrate
from resdeploy.export.quantization.recipe import QuantizationRecipe, read_recipe
from resdeploy.export.quantization.result import Calibration, MixtureEvaluation
from resdeploy.export.source import ImagePools, Source, read_source
from resdeploy.images.preprocessing import image_digest
from resdeploy.progress import silent
from resdeploy.runtime.backends.onnxruntime.cpu import OnnxRuntimeCpu
from resdeploy.runtime.backends.onnxruntime.session import DISABLED_OPTIMIZER
from resdeploy.statistics import agreement_percent, sqnr_db
from tests.samples import CLASSES, SIZE

BOTH = (Encoding.TENSORRT, Encoding.CPU)


@pytest.fixture
def model(tiny_bundle: Bundle, held_out: HeldOutImages) -> ir.Model:
    """The small network, balanced: a random one gives nearly every picture the same class."""
    model = ir.from_proto(onnx.load_from_string(tiny_bundle.read("fp32.onnx")))
    logits = OnnxRuntimeCpu(to_bytes(model), Encoding.FLOAT).run(held_out.images)
    bias = model.graph.initializers["fc.bias"]
    assert bias.const_value is not None
    bias.const_value = ir.tensor(bias.const_value.numpy() - logits.mean(axis=0), name="fc.bias")
    return model


@pytest.fixture(params=BOTH, ids=lambda encoding: encoding.value)
def recipe(request: pytest.FixtureRequest, tiny_bundle: Bundle) -> QuantizationRecipe:
    """One tensor's range is so narrow that classes change."""
    good = read_recipe(tiny_bundle, request.param)
    narrow = good.ranges["layer3.0.relu2"]
    ranges = {**good.ranges, "layer3.0.relu2": Range(low=0.0, high=narrow.high / 200)}
    return dataclasses.replace(good, ranges=ranges)


@pytest.fixture(scope="module")
def held_out() -> HeldOutImages:
    # A random colour each: many lie between two classes.
    generator = np.random.default_rng(5)
    noise = generator.normal(0, 20, (64, SIZE, SIZE, 3))
    colours = generator.uniform(0, 256, (64, 1, 1, 3))
    images = np.clip(colours + noise, 0, 255).astype(np.uint8)
    return HeldOutImages(images=images, classes=None, digests=())


def run(model: ir.Model, recipe: QuantizationRecipe, images: np.ndarray) -> np.ndarray:
    return OnnxRuntimeCpu(to_bytes(recipe.apply(model, half=False)), recipe.encoding).run(images)


def test_layers_are_handed_back_until_the_gate_holds(
    model: ir.Model, recipe: QuantizationRecipe, held_out: HeldOutImages
) -> None:
    gate = AccuracyTarget(min_agreement=95.0)
    given, result, _ = search(model, recipe, gate, held_out, seconds=600, progress=silent)
    assert result.agreement_before < 95 <= result.agreement
    assert not result.out_of_time
    assert result.layers
    # In another graph, without switches, the same holds.
    reference = OnnxRuntimeCpu(to_bytes(model), Encoding.FLOAT).run(held_out.images)
    logits = run(model, given, held_out.images)
    assert agreement_percent(reference, logits) >= 95 - 100 / len(held_out.images)
    assert np.median(sqnr_db(reference, logits)) > np.median(
        sqnr_db(reference, run(model, recipe, held_out.images))
    )


def test_what_the_gate_does_not_need_is_taken_back(
    model: ir.Model,
    recipe: QuantizationRecipe,
    held_out: HeldOutImages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever stands before them in the ranking, two layers that decide are all that remain."""
    needed = {"layer4.0.conv2", "layer1.0.conv1"}

    def evaluate(self: object, layers: Sequence[Layer]) -> MixtureEvaluation:
        names = tuple(layer.name for layer in layers)
        holds = needed <= set(names)
        return MixtureEvaluation(
            encoding=recipe.encoding,
            layers=names,
            nodes=frozenset(node for layer in layers for node in layer.nodes),
            agreement=99.0 + holds,
            drop=0.0,
            images=64,
            holds=holds,
        )

    monkeypatch.setattr(MixedPrecisionEvaluator, "evaluate", evaluate)
    gate = AccuracyTarget(min_agreement=100.0)
    _, result, _ = search(model, recipe, gate, held_out, seconds=600, progress=silent)
    assert set(result.layers) == needed
    assert result.convolutions == 2
    assert not result.out_of_time


def test_short_lists_are_tried_before_long_ones(
    model: ir.Model,
    recipe: QuantizationRecipe,
    held_out: HeldOutImages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Should the time end, a short list that holds is more likely known."""
    lengths: list[int] = []

    def evaluate(self: object, layers: Sequence[Layer]) -> MixtureEvaluation:
        lengths.append(len(layers))
        return MixtureEvaluation(
            encoding=recipe.encoding,
            layers=tuple(layer.name for layer in layers),
            nodes=frozenset(node for layer in layers for node in layer.nodes),
            agreement=90.0 + len(layers),
            drop=0.0,
            images=64,
            holds=len(layers) >= 3,
        )

    monkeypatch.setattr(MixedPrecisionEvaluator, "evaluate", evaluate)
    gate = AccuracyTarget(min_agreement=93.0)
    _, result, _ = search(model, recipe, gate, held_out, seconds=600, progress=silent)
    assert lengths[:5] == [0, 1, 2, 4, 3]
    assert len(result.layers) == 3


def test_a_gate_that_holds_costs_nothing(
    model: ir.Model, tiny_bundle: Bundle, held_out: HeldOutImages
) -> None:
    good = read_recipe(tiny_bundle, Encoding.CPU)
    given, result, _ = search(
        model, good, AccuracyTarget(min_agreement=10.0), held_out, seconds=600, progress=silent
    )
    assert given == good
    assert (result.layers, result.convolutions, result.evaluations) == ((), 0, 1)


def test_the_drop_is_counted_with_classes_and_bounded_without(
    model: ir.Model, recipe: QuantizationRecipe, held_out: HeldOutImages
) -> None:
    gate = AccuracyTarget(max_drop=100.0)  # holds at once
    _, unknown, _ = search(model, recipe, gate, held_out, seconds=600, progress=silent)
    assert unknown.drop == pytest.approx(100 - unknown.agreement)
    reference = OnnxRuntimeCpu(to_bytes(model), Encoding.FLOAT).run(held_out.images)
    classes = reference.argmax(axis=1)
    right = dataclasses.replace(held_out, classes=classes)
    _, known, _ = search(model, recipe, gate, right, seconds=600, progress=silent)
    assert known.drop == pytest.approx(100 - known.agreement)  # FP32 is right on all of them
    wrong = dataclasses.replace(held_out, classes=(classes + 1) % 3)
    _, gained, _ = search(model, recipe, gate, wrong, seconds=600, progress=silent)
    assert gained.drop <= 0  # FP32 is right on none


def test_no_evaluation_begins_that_would_end_too_late(
    model: ir.Model, recipe: QuantizationRecipe, held_out: HeldOutImages
) -> None:
    # Every look at the clock is a second later, and there are two for each batch.
    gate = AccuracyTarget(min_agreement=100.0)
    for seconds in (20, 30, 40):
        ticks = count()
        _, result, _ = search(
            model, recipe, gate, held_out, seconds=seconds, progress=silent,
            clock=map(float, ticks).__next__,
        )  # fmt: skip
        assert next(ticks) <= seconds + 5  # the looks that find that no time is left
        assert result.out_of_time
        assert result.agreement >= 100  # the shortest list that is known to hold, were it all


def test_too_little_time_is_one_sentence(
    model: ir.Model, recipe: QuantizationRecipe, held_out: HeldOutImages
) -> None:
    ticks = count()
    with pytest.raises(CalibrationError, match="too short to try") as caught:
        search(
            model, recipe, AccuracyTarget(max_drop=0.0), held_out, seconds=2, progress=silent,
            clock=map(float, ticks).__next__,
        )  # fmt: skip
    assert "--search-seconds" in str(caught.value.hint)


@pytest.fixture
def source(tiny_checkpoint: Path, image_data: Path) -> Source:
    source = read_source(tiny_checkpoint, image_size=SIZE, calibration_data=image_data)
    return dataclasses.replace(source, labels=CLASSES)


def test_gate_images_are_validation_images_that_nothing_else_used(source: Source) -> None:
    only = dataclasses.replace(source, pools=ImagePools(golden=source.pools.golden))
    everything = draw_held_out_images(only, 0, ())
    assert len(everything.images) == 24  # all of val/
    assert everything.classes is not None
    assert np.bincount(everything.classes).tolist() == [8, 8, 8]
    assert draw_held_out_images(source, 0, ()).digests[:24] == everything.digests
    half = draw_held_out_images(only, 0, set(everything.digests[:12]))
    assert sorted(half.digests) == sorted(everything.digests[12:])
    assert [image_digest(image) for image in half.images] == list(half.digests)


def test_no_image_left_for_the_gate_is_one_sentence(source: Source) -> None:
    empty = dataclasses.replace(source, pools=ImagePools())
    with pytest.raises(CalibrationError, match="no image is left to judge") as caught:
        draw_held_out_images(empty, 0, ())
    assert "val/" in str(caught.value.hint)


def test_an_export_to_a_gate_says_what_it_gave_up(
    tiny_checkpoint: Path, tmp_path: Path, image_data: Path
) -> None:
    config = ExportConfig(
        source=tiny_checkpoint, output=tmp_path / "x.bundle", image_size=SIZE, int8=True,
        calibration_data=image_data, calibration_images=20, calibrator="max", min_agreement=100.0,
    )  # fmt: skip
    result = export(config)
    bundle = open_bundle(result.bundle)
    assert bundle.manifest.calibration is not None
    given = {line["encoding"]: line for line in bundle.manifest.calibration["float_layers"]}
    assert set(given) == {"tensorrt", "cpu"}
    for artifact in result.artifacts[1:]:
        line = given[artifact.encoding.value]
        assert artifact.int8_convs == artifact.convs - line["convolutions"]
        recipe = read_recipe(bundle, artifact.encoding)
        model = ir.from_proto(onnx.load_from_string(bundle.read("fp32.onnx")))
        assert to_bytes(recipe.apply(model)) == bundle.read(artifact.file)
    assert "handed back" in export_text(result)
    # Sums of floats depend on their order, so on the CPU: only integers are the same everywhere.
    assert set(bundle.golden().bit_exact) == (set() if given["cpu"]["layers"] else {"int8-cpu"})


def test_a_graph_with_a_layer_in_float_has_no_exact_logits(
    tiny_checkpoint: Path, tmp_path: Path, image_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_float(calibration: Calibration) -> Calibration:
        cpu = dataclasses.replace(
            calibration.recipes[Encoding.CPU], in_float=frozenset(["layer1.0.conv1"])
        )
        return dataclasses.replace(calibration, recipes={**calibration.recipes, Encoding.CPU: cpu})

    monkeypatch.setattr(
        pipeline, "calibrate", lambda *given, **named: in_float(calibrate(*given, **named))
    )
    config = ExportConfig(
        source=tiny_checkpoint, output=tmp_path / "x.bundle", image_size=SIZE, int8=True,
        calibration_data=image_data, calibration_images=20, calibrator="max",
    )  # fmt: skip
    assert open_bundle(export(config).bundle).golden().bit_exact == {}


def test_a_gate_without_int8_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(ExportError, match="concern INT8 graphs"):
        export(ExportConfig(source=tiny_checkpoint, max_drop=0.5))


def test_cpu_convolutions_that_stay_are_integer_kernels(
    model: ir.Model, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(
        read_recipe(tiny_bundle, Encoding.CPU),
        in_float=frozenset(["conv1", "layer2.0.conv2", "layer3.0.add"]),
    )
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(
        to_bytes(recipe.apply(model)), options, providers=["CPUExecutionProvider"],
        disabled_optimizers=[DISABLED_OPTIMIZER],  # it would quantise the weights after all
    )  # fmt: skip
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearConv") == 12 - 2
    assert sum(kind in ("Conv", "FusedConv") for kind in kinds) == 2
