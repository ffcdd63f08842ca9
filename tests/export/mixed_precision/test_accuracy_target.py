"""Tests of the search for layers to keep in float for an accuracy target, within a time limit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.bundle.calibration_record import (
    CalibrationRecord,
    FloatLayers,
    float_layers_sentence,
)
from resdeploy.bundle.manifest import Encoding
from resdeploy.calibration.ranges import Range
from resdeploy.changed_predictions import ChangedPredictions, ExpectedChanges
from resdeploy.cli.export import export_text
from resdeploy.errors import ExportError
from resdeploy.export import pipeline
from resdeploy.export.graph.float_layers import Layer
from resdeploy.export.graph.to_onnx import to_bytes
from resdeploy.export.mixed_precision.accuracy_target import AccuracyTarget, find_float_layers
from resdeploy.export.mixed_precision.evaluator import (
    MixedPrecisionEvaluator,
    SearchContext,
)
from resdeploy.export.pipeline import ExportConfig, export
from resdeploy.export.quantization.calibrate import calibrate
from resdeploy.export.quantization.held_out import HeldOutImages
from resdeploy.export.quantization.recipe import QuantizationRecipe, read_recipe
from resdeploy.export.quantization.result import Calibration, MixtureEvaluation
from resdeploy.progress import silent
from resdeploy.runtime.backends.onnxruntime.cpu import OnnxRuntimeCpu
from resdeploy.runtime.backends.onnxruntime.session import DISABLED_OPTIMIZER
from resdeploy.statistics import agreement_percent, sqnr_db
from tests.samples import SIZE

BOTH = (Encoding.TENSORRT, Encoding.CPU)


@pytest.fixture
def model(tiny_bundle: Bundle, held_out: HeldOutImages) -> ir.Model:
    """Return the small network with balanced predictions; random weights favour one class."""
    model = ir.from_proto(onnx.load_from_string(tiny_bundle.read("fp32.onnx")))
    logits = OnnxRuntimeCpu(to_bytes(model), Encoding.FLOAT).run(held_out.images)
    bias = model.graph.initializers["fc.bias"]
    assert bias.const_value is not None
    bias.const_value = ir.tensor(bias.const_value.numpy() - logits.mean(axis=0), name="fc.bias")
    return model


@pytest.fixture(params=BOTH, ids=lambda encoding: encoding.value)
def recipe(request: pytest.FixtureRequest, tiny_bundle: Bundle) -> QuantizationRecipe:
    """Return a recipe in which the range of a tensor is so narrow that predicted classes change."""
    good = read_recipe(tiny_bundle, request.param)
    narrow = good.ranges["layer3.0.relu2"]
    ranges = {**good.ranges, "layer3.0.relu2": Range(low=0.0, high=narrow.high / 200)}
    return dataclasses.replace(good, ranges=ranges)


@pytest.fixture(scope="module")
def held_out() -> HeldOutImages:
    # Each image has a random colour, so that many have a small margin between two classes.
    generator = np.random.default_rng(5)
    noise = generator.normal(0, 20, (64, SIZE, SIZE, 3))
    colours = generator.uniform(0, 256, (64, 1, 1, 3))
    images = np.clip(colours + noise, 0, 255).astype(np.uint8)
    return HeldOutImages(images=images, classes=None, digests=())


@pytest.fixture
def context(model: ir.Model, held_out: HeldOutImages) -> SearchContext:
    return SearchContext(
        model=model, held_out=held_out, calibrating=held_out.images, seconds=600, progress=silent
    )


def ticking_clock() -> Callable[[], float]:
    """Return a clock that advances by a second whenever it is read."""
    return map(float, count()).__next__


def changed(count: int) -> ChangedPredictions:
    return ChangedPredictions(images=64, changed=count, lost=count, gained=0, labelled=False)


def run(model: ir.Model, recipe: QuantizationRecipe, images: np.ndarray) -> np.ndarray:
    return OnnxRuntimeCpu(to_bytes(recipe.apply(model, half=False)), recipe.encoding).run(images)


def test_layers_stay_in_float_until_the_target_is_met(
    recipe: QuantizationRecipe, context: SearchContext
) -> None:
    model, images = context.model, context.held_out.images
    target = AccuracyTarget(min_agreement=95.0)
    mixed, result, _ = find_float_layers(recipe, target, context)
    assert result.agreement_before < 95 <= result.agreement
    assert not result.out_of_time
    assert result.layers
    # With float32 instead of float16, at most one image more may have another predicted class.
    reference = OnnxRuntimeCpu(to_bytes(model), Encoding.FLOAT).run(images)
    logits = run(model, mixed, images)
    assert agreement_percent(reference, logits) >= 95 - 100 / len(images)
    assert np.median(sqnr_db(reference, logits)) > np.median(
        sqnr_db(reference, run(model, recipe, images))
    )


def test_layers_that_the_target_does_not_need_revert_to_int8(
    recipe: QuantizationRecipe, context: SearchContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that only the two needed layers stay in float, wherever they are in the ranking."""
    needed = {"layer4.0.conv2", "layer1.0.conv1"}

    def evaluate(self: object, layers: Sequence[Layer]) -> MixtureEvaluation:
        names = tuple(layer.name for layer in layers)
        return MixtureEvaluation(
            encoding=recipe.encoding,
            layers=names,
            nodes=frozenset(node for layer in layers for node in layer.nodes),
            changes=changed(0 if needed <= set(names) else 1),
            expected=ExpectedChanges(100.0, 0.0),
        )

    monkeypatch.setattr(MixedPrecisionEvaluator, "evaluate", evaluate)
    _, result, _ = find_float_layers(recipe, AccuracyTarget(min_agreement=100.0), context)
    assert set(result.layers) == needed
    assert result.convolutions == 2
    assert not result.out_of_time


def test_short_lists_are_evaluated_before_long_ones(
    recipe: QuantizationRecipe, context: SearchContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check the order, which makes it likely that a short list is known when the time ends."""
    lengths: list[int] = []

    def evaluate(self: object, layers: Sequence[Layer]) -> MixtureEvaluation:
        lengths.append(len(layers))
        return MixtureEvaluation(
            encoding=recipe.encoding,
            layers=tuple(layer.name for layer in layers),
            nodes=frozenset(node for layer in layers for node in layer.nodes),
            changes=changed(3 - min(len(layers), 3)),
            expected=ExpectedChanges(96.5 + min(len(layers), 3), 0.0),
        )

    monkeypatch.setattr(MixedPrecisionEvaluator, "evaluate", evaluate)
    _, result, _ = find_float_layers(recipe, AccuracyTarget(min_agreement=99.0), context)
    assert lengths[:5] == [0, 1, 2, 4, 3]
    assert len(result.layers) == 3


def test_a_target_that_int8_meets_keeps_no_layer_in_float(
    tiny_bundle: Bundle, context: SearchContext
) -> None:
    good = read_recipe(tiny_bundle, Encoding.CPU)
    mixed, result, _ = find_float_layers(good, AccuracyTarget(min_agreement=10.0), context)
    assert mixed == good
    assert (result.layers, result.convolutions, result.evaluations) == ((), 0, 1)


def test_the_drop_is_exact_with_classes_and_an_upper_bound_without(
    recipe: QuantizationRecipe, context: SearchContext
) -> None:
    def float_layers_with(classes: np.ndarray | None) -> FloatLayers:
        held_out = dataclasses.replace(context.held_out, classes=classes)
        target = AccuracyTarget(max_drop=100.0)  # any graph meets it
        return find_float_layers(
            recipe, target, dataclasses.replace(context, held_out=held_out)
        )[1]  # fmt: skip

    unknown = float_layers_with(None)
    assert unknown.drop == pytest.approx(100 - unknown.agreement)
    reference = OnnxRuntimeCpu(to_bytes(context.model), Encoding.FLOAT).run(context.held_out.images)
    classes = reference.argmax(axis=1)
    known = float_layers_with(classes)
    assert known.drop == pytest.approx(100 - known.agreement)  # FP32's top-1 accuracy is 100 %
    assert float_layers_with((classes + 1) % 3).drop <= 0  # FP32's top-1 accuracy is 0 %


def test_no_evaluation_starts_that_would_end_too_late(
    recipe: QuantizationRecipe, context: SearchContext
) -> None:
    # The clock is read twice for each batch.
    target = AccuracyTarget(min_agreement=100.0)
    for seconds in (20, 30, 40):
        clock = ticking_clock()
        short = dataclasses.replace(context, seconds=seconds, clock=clock)
        _, result, _ = find_float_layers(recipe, target, short)
        assert clock() <= seconds + 5  # some readings find that no time is left
        assert result.out_of_time
        assert result.agreement >= 100  # of the best list so far, which may be all layers


def test_with_too_little_time_for_a_search_the_int8_graph_is_evaluated_all_the_same(
    recipe: QuantizationRecipe, context: SearchContext
) -> None:
    """An error would lose the work of the calibration."""
    short = dataclasses.replace(context, seconds=2, clock=ticking_clock())
    _, result, evaluations = find_float_layers(recipe, AccuracyTarget(min_agreement=100.0), short)
    assert result.out_of_time
    assert len(evaluations) == 1
    assert result.agreement_before == evaluations[0].changes.agreement < 100


@pytest.mark.parametrize(
    ("changes", "accepted"), [(11, True), (12, False), (17, False), (26, False)]
)
def test_the_search_asks_for_more_than_the_judgement(changes: int, accepted: bool) -> None:
    """On 2,560 images, 17 changes show 99 %; on other images, they are often a few more."""
    counts = ChangedPredictions(images=2560, changed=changes, lost=0, gained=0, labelled=True)
    mixture = MixtureEvaluation(
        encoding=Encoding.CPU, layers=(), nodes=frozenset(), changes=counts,
        expected=ExpectedChanges(98.0, 2.0),  # decides only if there are few images
    )  # fmt: skip
    assert AccuracyTarget(min_agreement=99.0).is_met_by(mixture) is accepted
    assert (counts.lowest_agreement() >= 99) is (changes <= 17)


@pytest.mark.parametrize(
    ("target", "accepted"),
    [
        (AccuracyTarget(min_agreement=98.5), True),
        (AccuracyTarget(min_agreement=99.0), False),
        (AccuracyTarget(min_agreement=100.0), True),  # of the images at hand
        (AccuracyTarget(max_drop=0.5), True),
        (AccuracyTarget(max_drop=0.3), False),
        (AccuracyTarget(max_drop=0.0), True),
        (AccuracyTarget(min_agreement=98.5, max_drop=0.3), False),
    ],
)
def test_few_images_without_a_change_do_not_hide_expected_changes(
    target: AccuracyTarget, accepted: bool
) -> None:
    mixture = MixtureEvaluation(
        encoding=Encoding.CPU, layers=(), nodes=frozenset(), changes=changed(0),
        expected=ExpectedChanges(98.7, 0.4),
    )  # fmt: skip
    assert target.is_met_by(mixture) is accepted


@pytest.mark.parametrize(
    ("images", "changes", "accepted"),
    [
        (64, 1, True),  # an image with two equal logits may change
        (64, 6, False),  # 99 % would show so many with a probability of 0.02 %
        (400, 0, True),
        (400, 1, False),  # as many images could show 99 %, but not with a changed class
    ],
)
def test_few_images_may_not_contradict_what_is_expected(
    images: int, changes: int, accepted: bool
) -> None:
    counts = ChangedPredictions(
        images=images, changed=changes, lost=changes, gained=0, labelled=False
    )
    mixture = MixtureEvaluation(
        encoding=Encoding.CPU, layers=(), nodes=frozenset(), changes=counts,
        expected=ExpectedChanges(99.3, 0.7),
    )  # fmt: skip
    assert AccuracyTarget(min_agreement=99.0).is_met_by(mixture) is accepted
    assert AccuracyTarget(max_drop=1.0).is_met_by(mixture) is accepted


@pytest.mark.slow
def test_an_export_with_a_target_reports_the_layers_in_float(
    tiny_checkpoint: Path, tmp_path: Path, image_data: Path
) -> None:
    config = ExportConfig(
        source=tiny_checkpoint, output=tmp_path / "x.bundle", image_size=SIZE, int8=True,
        calibration_data=image_data, calibration_images=20, calibrator="max", min_agreement=100.0,
    )  # fmt: skip
    result = export(config)
    bundle = open_bundle(result.bundle)
    assert bundle.manifest.calibration is not None
    recorded = {entry["encoding"]: entry for entry in bundle.manifest.calibration["float_layers"]}
    assert set(recorded) == {"tensorrt", "cpu"}
    for artifact in result.artifacts[1:]:
        entry = recorded[artifact.encoding.value]
        assert artifact.int8_convs == artifact.convs - entry["convolutions"]
        recipe = read_recipe(bundle, artifact.encoding)
        model = ir.from_proto(onnx.load_from_string(bundle.read("fp32.onnx")))
        assert to_bytes(recipe.apply(model)) == bundle.read(artifact.file)
    assert isinstance(result.calibration, CalibrationRecord)
    text = export_text(result)
    assert all(float_layers_sentence(each) in text for each in result.calibration.float_layers)
    # Sums of floats depend on their order, so only integers are the same on every CPU.
    bit_exact = set() if recorded["cpu"]["layers"] else {"int8-cpu"}
    assert set(bundle.golden().bit_exact) == bit_exact


def test_a_graph_with_a_layer_in_float_has_no_bit_exact_logits(
    tiny_checkpoint: Path, tmp_path: Path, image_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_float(calibration: Calibration) -> Calibration:
        cpu = dataclasses.replace(
            calibration.recipes[Encoding.CPU], in_float=frozenset(["layer1.0.conv1"])
        )
        return dataclasses.replace(calibration, recipes={**calibration.recipes, Encoding.CPU: cpu})

    monkeypatch.setattr(
        pipeline,
        "calibrate",
        lambda *positional, **named: in_float(calibrate(*positional, **named)),
    )
    config = ExportConfig(
        source=tiny_checkpoint, output=tmp_path / "x.bundle", image_size=SIZE, int8=True,
        calibration_data=image_data, calibration_images=20, calibrator="max",
    )  # fmt: skip
    assert open_bundle(export(config).bundle).golden().bit_exact == {}


def test_rejects_an_accuracy_target_without_int8(tiny_checkpoint: Path) -> None:
    with pytest.raises(ExportError, match="--max-drop applies only to INT8 graphs"):
        export(ExportConfig(source=tiny_checkpoint, max_drop=0.5))


def test_cpu_convolutions_that_stay_in_int8_are_integer_kernels(
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
        disabled_optimizers=[DISABLED_OPTIMIZER],  # it would quantise the float weights
    )  # fmt: skip
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearConv") == 12 - 2
    assert sum(kind in ("Conv", "FusedConv") for kind in kinds) == 2
