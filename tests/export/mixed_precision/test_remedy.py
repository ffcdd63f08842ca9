"""Tests of the remedy, with graphs whose noise has a known cause."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import cycle

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from resdeploy.bundle.analysis import Remedy
from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.calibration_record import CalibrationRecord, Score, TargetResult
from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Encoding, Parity, Quality, QualityOrigin
from resdeploy.bundle.quality import MIN_AGREEMENT, NO_INT8_SHORTCUTS, QAT, QualityLimits
from resdeploy.calibration.ranges import Range
from resdeploy.export.mixed_precision import remedy as module
from resdeploy.export.mixed_precision.remedy import (
    MAX_FLOAT_SHARE,
    MORE_CALIBRATION,
    MORE_IMAGES,
    find_remedy,
)
from resdeploy.export.quantization.calibrate import LEARNED
from resdeploy.export.quantization.recipe import QuantizationRecipe, read_recipe
from resdeploy.export.quantization.sensitivity import sqnr_per_tensor
from resdeploy.export.quantization.simulate import run_graph
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.progress import silent
from resdeploy.report.contents import calibration_record
from resdeploy.report.layers import remedy_lines
from resdeploy.statistics import Verdict, agreement_percent, sqnr_db

BAD = Parity(images=24, max_error=9.0, agreement=87.5, sqnr_db=12.0, sqnr_db_p5=5.0)
SQNRS: dict[tuple[object, ...], dict[str, float]] = {}
VICTIM, READER = "layer3.0.relu1", "layer3.0.conv2"


def fp32(bundle: Bundle) -> ir.Model:
    return ir.from_proto(onnx.load_from_string(bundle.read("fp32.onnx")))


def record_of(
    bundle: Bundle, calibrators: Sequence[str] = ("max", "mse"), images: int = 512
) -> CalibrationRecord:
    scores = (
        Score(
            calibrator=name,
            encoding=Encoding.CPU,
            agreement=9,
            sqnr_db=9,
            sqnr_db_p5=9,
            divergence=9,
        )
        for name in calibrators
    )
    record = calibration_record(bundle.manifest)
    return dataclasses.replace(record, images=images, scores=tuple(scores))


def ruined(recipe: QuantizationRecipe, *tensors: str, factor: float = 40) -> QuantizationRecipe:
    """Return the recipe with much too narrow ranges of `tensors`, or of all tensors."""
    ranges = {
        tensor: Range(low=chosen.low / factor, high=chosen.high / factor)
        if tensor in tensors or not tensors
        else chosen
        for tensor, chosen in recipe.ranges.items()
    }
    return dataclasses.replace(recipe, ranges=ranges)


def remedy_of(
    bundle: Bundle,
    recipe: QuantizationRecipe,
    record: CalibrationRecord | None = None,
    parity: Parity = BAD,
    quality: Quality | None = None,
    seconds: float = 600,
    latencies: Sequence[float] = (2.0, 3.0),
) -> Remedy:
    golden = bundle.golden()
    key = bundle.path, recipe.encoding, recipe.in_float, tuple(recipe.ranges.items())
    if key not in SQNRS:  # several tests ruin the same ranges
        SQNRS[key] = sqnr_per_tensor(fp32(bundle), recipe, golden.images[:4], silent)
    sqnrs = SQNRS[key]
    times = cycle(latencies)
    artifact = dataclasses.replace(bundle.artifact("int8"), parity=parity, quality=quality)
    return find_remedy(
        fp32(bundle), recipe, record or record_of(bundle), artifact, golden, sqnrs,
        seconds=seconds, stopwatch=lambda *_: next(times),
    )  # fmt: skip


def test_the_layer_with_the_noise_goes_to_float_and_the_gain_is_real(tiny_bundle: Bundle) -> None:
    recipe = ruined(read_recipe(tiny_bundle, Encoding.TENSORRT), VICTIM)
    remedy = remedy_of(tiny_bundle, recipe)
    assert remedy.options == (MIN_AGREEMENT,)
    assert (remedy.agreement, remedy.sqnr_db, remedy.images) == (87.5, 12.0, 24)
    mixture = remedy.mixture
    assert mixture is not None
    assert READER in mixture.layers
    assert remedy.sufficient
    golden = tiny_bundle.golden()
    exported = dataclasses.replace(recipe, in_float=recipe.in_float | {*mixture.layers})
    logits = run_graph(exported.apply(fp32(tiny_bundle)), Encoding.TENSORRT, golden.images)
    assert mixture.sqnr_db == pytest.approx(np.median(sqnr_db(golden.logits, logits)), abs=0.01)
    assert mixture.agreement == agreement_percent(golden.logits, logits)
    before = run_graph(recipe.apply(fp32(tiny_bundle)), Encoding.TENSORRT, golden.images)
    assert mixture.sqnr_db > np.median(sqnr_db(golden.logits, before)) + 3
    assert (
        mixture.latency_ratio is None
    )  # a CPU does not run TensorRT's graph as fast as TensorRT does
    text = " ".join(remedy_lines(remedy))
    assert (
        "Action, because of the agreement and the SQNR: export another bundle with --min-agreement "
        "99, and see with resdeploy compare if it is better." in text
    )
    assert READER in text


@pytest.mark.parametrize(
    ("latencies", "ratio", "text"),
    [
        ((2.0, 3.0), 1.5, "one image takes 1.50 times as long with ONNX Runtime on all cores."),
        ((4.0, 3.0), 0.75, "one image takes 0.75 times as long with ONNX Runtime on all cores."),
        (  # a load that comes and goes
            (2.0, 2.1, 2.0, 5.0, 4.0, 2.0, 2.0, 2.3, 3.0, 2.1), 1.05,
            "no measurable change of the latency of one image on a CPU.",
        ),
    ],
)  # fmt: skip
def test_a_cpu_graph_has_the_relative_cost_in_time(
    tiny_bundle: Bundle, latencies: Sequence[float], ratio: float, text: str
) -> None:
    recipe = ruined(read_recipe(tiny_bundle, Encoding.CPU), VICTIM)
    remedy = remedy_of(tiny_bundle, recipe, latencies=latencies)
    assert remedy.mixture is not None
    assert remedy.mixture.latency_ratio == pytest.approx(ratio)
    assert remedy_lines(remedy)[-1].endswith(text)
    assert " ms" not in remedy_lines(remedy)[-1]


@pytest.mark.parametrize("calibrator", ["max", LEARNED])
def test_noise_everywhere_needs_training(tiny_bundle: Bundle, calibrator: str) -> None:
    recipe = ruined(read_recipe(tiny_bundle, Encoding.CPU))
    remedy = remedy_of(tiny_bundle, dataclasses.replace(recipe, calibrator=calibrator))
    assert remedy.options == (() if calibrator == LEARNED else (QAT,))
    assert not remedy.sufficient
    assert remedy.mixture is not None
    assert remedy.mixture.float_share_percent <= 100 * MAX_FLOAT_SHARE
    text = " ".join(remedy_lines(remedy))
    assert "layers in float alone may not be enough" in text
    expected = "use a graph in float" if calibrator == LEARNED else "train DATA --qat --init RUN"
    assert expected in text


@pytest.mark.parametrize(
    ("images", "available", "options"),
    [
        (16, 60, (MORE_IMAGES, MIN_AGREEMENT)),
        (16, 110, (MORE_IMAGES, MIN_AGREEMENT)),
        (16, 160, (MORE_CALIBRATION,)),
        (128, 2000, (MORE_CALIBRATION,)),
        (128, 200, (MIN_AGREEMENT,)),
        (512, 2000, (MIN_AGREEMENT,)),
    ],
)
def test_a_poor_calibration_is_named_first(
    tiny_bundle: Bundle, images: int, available: int, options: tuple[str, ...]
) -> None:
    recipe = ruined(read_recipe(tiny_bundle, Encoding.TENSORRT), VICTIM)
    # Percentiles were compared with each other, but not with other rules.
    record = record_of(tiny_bundle, ("percentile-99.9", "percentile-99.99"), images=images)
    record = dataclasses.replace(record, available=available)
    remedy = remedy_of(tiny_bundle, recipe, record)
    assert remedy.options == ("--calibrator auto", *options)


def test_a_target_of_the_export_is_not_named_again(tiny_bundle: Bundle) -> None:
    recipe = ruined(read_recipe(tiny_bundle, Encoding.TENSORRT), VICTIM)

    def options(limit: float) -> tuple[str, ...]:
        target = TargetResult(
            encoding=Encoding.TENSORRT, option="--min-agreement", limit=limit, figure=100,
            bound=96, samples=81, origin=None, images_to_decide=300, verdict=Verdict.INCONCLUSIVE,
        )  # fmt: skip
        record = dataclasses.replace(record_of(tiny_bundle, images=81), targets=(target,))
        return remedy_of(tiny_bundle, recipe, record).options

    assert options(98) == (MORE_IMAGES, MIN_AGREEMENT)
    assert options(99) == (MORE_IMAGES,)


def test_the_dla_keeps_no_layer_in_float(tiny_bundle: Bundle) -> None:
    recipe = dataclasses.replace(read_recipe(tiny_bundle, Encoding.CPU), encoding=Encoding.DLA)
    remedy = remedy_of(tiny_bundle, recipe)
    assert (remedy.options, remedy.mixture) == ((QAT,), None)
    assert "No option keeps layers of int8-dla.onnx in float." in remedy_lines(remedy)
    learned = remedy_of(tiny_bundle, dataclasses.replace(recipe, calibrator=LEARNED))
    text = " ".join(remedy_lines(learned))
    assert "use a graph in float" in text
    assert "No action is needed" not in text


def test_int8_shortcuts_are_the_first_suspect(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tiny network's accuracy depends on the processor that it was trained on. Its graph, whose
    # shortcuts are in float, meets limits that are a point and a decibel below its own figures.
    exported = tiny_bundle.artifact("int8").parity
    limits = QualityLimits(agreement=exported.agreement - 1, sqnr_db=exported.sqnr_db - 1)
    assert limits.sqnr_db > BAD.sqnr_db
    monkeypatch.setattr(module, "ENOUGH", limits)
    recipe = read_recipe(tiny_bundle, Encoding.TENSORRT)
    remedy = remedy_of(tiny_bundle, dataclasses.replace(recipe, in_float=frozenset()))
    assert remedy.options == (NO_INT8_SHORTCUTS,)
    assert remedy.mixture is not None
    assert {*remedy.mixture.layers} == recipe.in_float
    assert "export another bundle without --int8-shortcuts, and" in " ".join(remedy_lines(remedy))


@pytest.mark.parametrize(
    ("changed", "sqnr", "judged", "needed"),
    [
        (0, 30.0, None, False),
        (1, 40.0, None, False),  # of 24, which is no evidence
        (2, 40.0, None, True),
        (0, 29.9, None, True),
        (3, 32.0, 99.2, False),  # 5,000 images show more than the golden ones
        (0, 25.0, 99.5, False),  # nor does a low SQNR of the golden images matter then
        (0, 40.0, 98.0, True),
    ],
)
def test_an_action_is_named_only_if_it_is_needed(
    tiny_bundle: Bundle, changed: int, sqnr: float, judged: float | None, needed: bool
) -> None:
    recipe, quality = read_recipe(tiny_bundle, Encoding.TENSORRT), None
    if judged is not None:
        quality = Quality(images=5000, agreement=judged, sqnr_db=33, origin=QualityOrigin.HELD_OUT)
    parity = dataclasses.replace(BAD, agreement=100 * (1 - changed / 24), sqnr_db=sqnr)
    remedy = remedy_of(tiny_bundle, recipe, None, parity, quality)
    assert bool(remedy.options) == needed
    assert (remedy.mixture is not None) == needed
    assert remedy.images == (24 if judged is None else 5000)
    (first, *_) = remedy_lines(remedy)
    assert first.startswith("No action is needed") != needed
    assert ("5,000 images not used by the calibration" in first) == (judged is not None)


@pytest.mark.parametrize(("ties", "options"), [(1, (MIN_AGREEMENT,)), (3, (QAT,))])
def test_one_golden_image_between_two_classes_does_not_decide(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, ties: int, options: tuple[str, ...]
) -> None:
    golden = tiny_bundle.golden()

    def almost_float(*_: object) -> Float32Array:
        logits = golden.logits.copy()
        logits[:ties] = np.roll(logits[:ties], 1, axis=1)
        return logits

    monkeypatch.setattr(module, "run_graph", almost_float)
    recipe = ruined(read_recipe(tiny_bundle, Encoding.TENSORRT), VICTIM)
    remedy = remedy_of(tiny_bundle, recipe)
    assert remedy.mixture is not None
    assert remedy.mixture.agreement == pytest.approx(100 * (1 - ties / 24))
    assert (remedy.options, remedy.sufficient) == (options, ties == 1)


def test_the_time_is_limited(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = ruined(read_recipe(tiny_bundle, Encoding.TENSORRT), VICTIM)
    runs = 0

    def counted(model: ir.Model, encoding: Encoding, images: UInt8Array) -> Float32Array:
        nonlocal runs
        runs += 1
        return run_graph(model, encoding, images)

    monkeypatch.setattr(module, "run_graph", counted)
    all_runs = remedy_of(tiny_bundle, recipe)
    assert runs > 1
    runs = 0
    hasty = remedy_of(tiny_bundle, recipe, seconds=0)
    assert runs == 1
    assert hasty.sufficient
    assert hasty.mixture is not None
    assert all_runs.mixture is not None
    assert len(hasty.mixture.layers) > len(all_runs.mixture.layers)
