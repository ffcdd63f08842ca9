"""Judgement of the INT8 graphs on images that did not calibrate them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resdeploy.bundle.manifest import Encoding, QualityOrigin
from resdeploy.calibration.ranges import TensorStatistics
from resdeploy.export.graph.to_onnx import to_onnx
from resdeploy.export.inputs import Source, read_source
from resdeploy.export.quantization import judge as module
from resdeploy.export.quantization.calibrate import LEARNED, calibrate, choose_ranges, with_dla
from resdeploy.export.quantization.held_out import HeldOutImages, draw_held_out_images
from resdeploy.export.quantization.judge import duration_line, judge
from resdeploy.export.quantization.recipe import QuantizationRecipe
from resdeploy.export.quantization.result import Calibration
from resdeploy.export.quantization.simulate import run_graph
from resdeploy.progress import Progress, silent
from resdeploy.statistics import agreement_percent, sqnr_db
from tests.samples import CLASSES, SIZE, make_classifier


@pytest.fixture(scope="module")
def source(tiny_checkpoint: Path, image_data: Path) -> Source:
    source = read_source(tiny_checkpoint, image_size=SIZE, calibration_data=image_data)
    return dataclasses.replace(source, labels=CLASSES)


@pytest.fixture(scope="module")
def calibration(source: Source) -> Calibration:
    return calibrate(
        to_onnx(make_classifier(), SIZE), source, calibrator="max", images=25, seed=0,
        golden_digests=(), progress=silent, cross_validated=20,
    )  # fmt: skip


@pytest.fixture(scope="module")
def held_out(source: Source, calibration: Calibration) -> HeldOutImages:
    return draw_held_out_images(source, 0, 24, used=calibration.digests)


@pytest.mark.parametrize(
    ("rounding", "limit", "minutes", "shorter"),
    [
        (81.5, 600.0, 7, "--search-seconds 60"),
        (81.5, 200.0, 3, "--search-seconds 60"),  # two of five parts
        (81.5, 60.0, 1, ""),  # the first part is always judged
        (300.0, 600.0, 10, "--search-seconds 60"),
        (5.0, 600.0, 0, ""),  # less than a minute is not announced
    ],
)
def test_a_long_judgement_is_announced(
    rounding: float, limit: float, minutes: int, shorter: str
) -> None:
    line = duration_line(rounding, 5, limit)
    assert (line is not None) is (minutes > 0)
    assert line is None or f"takes about {minutes} minute" in line
    assert (line or "").endswith(shorter) if shorter else "--search" not in (line or "")


def test_held_out_images_are_judged_with_the_graphs_of_the_bundle(
    calibration: Calibration, held_out: HeldOutImages
) -> None:
    calibration = with_dla(dataclasses.replace(calibration, folds=()), "max", silent)
    judgement = judge(calibration, held_out, silent)
    assert judgement is not None
    assert judgement.origin is QualityOrigin.HELD_OUT
    assert judgement.classes is not None
    assert set(judgement.logits) == {Encoding.TENSORRT, Encoding.CPU, Encoding.DLA}
    reference = run_graph(calibration.model, Encoding.FLOAT, held_out.images)
    for encoding, recipe in calibration.recipes.items():
        logits = run_graph(recipe.apply(calibration.model), encoding, held_out.images)
        quality = judgement.quality(encoding)
        assert quality.images == 24
        assert quality.agreement == agreement_percent(reference, logits)
        assert quality.sqnr_db == float(np.median(sqnr_db(reference, logits)))


def test_folds_are_judged_with_the_ranges_of_the_other_images(
    calibration: Calibration, held_out: HeldOutImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges: list[int] = []

    def spy(others: Mapping[str, TensorStatistics], *rest: Any) -> QuantizationRecipe:
        ranges.append(len(next(iter(others.values())).lows))
        return choose_ranges(others, *rest)

    monkeypatch.setattr(module, "choose_ranges", spy)
    judgement = judge(calibration, held_out, silent)
    assert judgement is not None
    assert judgement.origin is QualityOrigin.CROSS_VALIDATION
    assert len(judgement.reference) == 24 + 20
    assert len(judgement.logits[Encoding.CPU]) == 24 + 20
    assert ranges == [21] * 10  # 25 images without the 4 of a fold, for 5 folds and 2 encodings


def test_ranges_that_clip_the_images_of_a_fold_lower_its_quality(calibration: Calibration) -> None:
    """The folds show what the calibration images themselves cannot: how ranges fit new images."""
    honest = judge(calibration, calibration.folds[0].images.part(0, 0), silent)
    dimmed = tuple(
        dataclasses.replace(
            fold,
            others={
                tensor: dataclasses.replace(
                    found, lows=found.lows / np.float32(50), highs=found.highs / np.float32(50)
                )
                for tensor, found in fold.others.items()
            },
        )
        for fold in calibration.folds
    )
    clipped = judge(
        dataclasses.replace(calibration, folds=dimmed),
        calibration.folds[0].images.part(0, 0),
        silent,
    )
    assert honest is not None
    assert clipped is not None
    for encoding in (Encoding.TENSORRT, Encoding.CPU):
        assert clipped.quality(encoding).sqnr_db < honest.quality(encoding).sqnr_db - 10


def test_learned_ranges_need_no_folds_of_their_own(
    calibration: Calibration, held_out: HeldOutImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = {
        encoding: dataclasses.replace(recipe, calibrator=LEARNED)
        for encoding, recipe in calibration.recipes.items()
    }
    monkeypatch.setattr(module, "choose_ranges", lambda *a: pytest.fail("ranges were chosen"))
    assert judge(dataclasses.replace(calibration, recipes=recipes), held_out, silent) is not None


def test_too_little_time_means_fewer_images(
    calibration: Calibration, held_out: HeldOutImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IMAGES_AT_ONCE", 10)
    clock: Callable[[], float] = map(float, count()).__next__
    alone = dataclasses.replace(calibration, folds=())
    judgement = judge(alone, held_out, silent, seconds=4, clock=clock)
    assert judgement is not None
    assert len(judgement.reference) == 20  # two parts of ten
    assert judgement.origin is QualityOrigin.HELD_OUT
    mixed = judge(calibration, held_out, silent, seconds=1, clock=clock)
    assert mixed is not None
    assert len(mixed.reference) == 10 + 4  # the first part and the first fold
    assert mixed.origin is QualityOrigin.CROSS_VALIDATION


@pytest.mark.parametrize(("seconds", "folds"), [(25, 2), (1, 1), (49, 4), (math.inf, 5)])
def test_the_time_limit_includes_the_rounding_of_the_weights_of_folds(
    calibration: Calibration, held_out: HeldOutImages, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, seconds: float, folds: int,
) -> None:  # fmt: skip
    now, started = 0.0, list[float]()

    def rounded(model: Any, recipes: Any, images: Any, progress: Progress) -> Any:
        nonlocal now
        started.append(now)
        now += 10
        return recipes

    monkeypatch.setattr(module, "rounded_recipes", rounded)
    caplog.set_level("INFO")
    judgement = judge(calibration, held_out.part(0, 0), silent, seconds, clock=lambda: now)
    assert judgement is not None
    assert len(judgement.reference) == 4 * folds
    assert len(started) == folds
    told = f"judged on {4 * folds} of 20 images: the others, for which weights are rounded again, "
    told += f"would have taken longer than --search-seconds {seconds:g}"
    assert caplog.messages == ([] if folds == 5 else [told])


def test_without_images_there_is_no_judgement(
    calibration: Calibration, held_out: HeldOutImages
) -> None:
    nothing = dataclasses.replace(calibration, folds=())
    assert judge(nothing, held_out.part(0, 0), silent) is None
