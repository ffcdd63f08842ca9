"""Tests of calibration, and of the choice of calibrators on images that do not calibrate."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resdeploy.bundle.calibration_record import explain_calibrator
from resdeploy.bundle.manifest import Encoding
from resdeploy.calibration.calibrators import CALIBRATORS
from resdeploy.export.graph.coverage import coverage
from resdeploy.export.graph.to_onnx import to_onnx
from resdeploy.export.inputs import ImagePools, Source, read_source
from resdeploy.export.quantization.calibrate import (
    ENCODINGS,
    LEARNED,
    calibrate,
    calibrators_named,
    score_logits,
    with_dla,
)  # fmt: skip
from resdeploy.export.quantization.recipe import QuantizationRecipe, encode_recipes
from resdeploy.export.quantization.result import Calibration
from resdeploy.export.quantization.simulate import batch_size
from resdeploy.images.folder import find_images
from resdeploy.images.loading import load_image
from resdeploy.images.preprocessing import image_digest
from resdeploy.progress import silent
from tests.samples import CLASSES, SIZE, make_classifier


@pytest.fixture
def source(tiny_checkpoint: Path, image_data: Path) -> Source:
    return read_source(tiny_checkpoint, image_size=SIZE, calibration_data=image_data)


def run(source: Source, calibrator: str, images: int = 40, seed: int = 0) -> Calibration:
    return calibrate(
        to_onnx(make_classifier(), SIZE), source, calibrator=calibrator, images=images, seed=seed,
        golden_digests=(), progress=silent,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "calibrators"),
    [
        ("max", ["max"]),
        ("entropy", ["entropy"]),
        ("percentile", ["percentile-99.9", "percentile-99.99", "percentile-99.999"]),
        ("image", ["image-95", "image-97", "image-99"]),
        ("image-97", ["image-97"]),
        ("auto", list(CALIBRATORS)),
    ],
)
def test_a_name_stands_for_one_calibrator_a_family_or_all(
    name: str, calibrators: list[str]
) -> None:
    assert calibrators_named(name) == calibrators


def test_each_calibrator_is_explained() -> None:
    texts = [explain_calibrator(name) for name in (*CALIBRATORS, LEARNED)]
    assert texts[2] == "image-97: the range that 97 % of the images do not exceed"
    assert len(set(texts)) == len(CALIBRATORS) + 1


@pytest.mark.parametrize(("size", "batch"), [(8, 64), (32, 64), (224, 4), (1024, 1)])
def test_batches_of_large_images_are_small(size: int, batch: int) -> None:
    assert batch_size(size) == batch


def test_one_calibrator_needs_no_scoring(source: Source) -> None:
    calibration = run(source, "max")
    assert calibration.scores == ()
    assert len(calibration.scoring.images) == 0
    assert len(calibration.digests) == 40
    assert {recipe.calibrator for recipe in calibration.recipes.values()} == {"max"}


def test_auto_scores_every_calibrator_for_each_encoding_and_takes_the_best(source: Source) -> None:
    calibration = run(source, "auto")
    assert len(calibration.scores) == 2 * len(CALIBRATORS)
    assert len(calibration.scoring.images) == 15
    calibration = with_dla(calibration, "auto", silent)
    assert len(calibration.scores) == 3 * len(CALIBRATORS)
    for encoding in (*ENCODINGS, Encoding.DLA):
        own = {s.calibrator: s.merit for s in calibration.scores if s.encoding is encoding}
        assert set(own) == set(CALIBRATORS)
        assert own[calibration.recipes[encoding].calibrator] == max(own.values())


def test_clipped_confident_images_count_more_than_a_few_decibels() -> None:
    recipe = QuantizationRecipe(encoding=Encoding.CPU, calibrator="max", ranges={})
    generator = np.random.default_rng(0)
    reference = generator.normal(0, 1, (128, 10)).astype(np.float32)
    reference[:4, 0] += 12  # a probability of nearly 1
    noise = generator.normal(0, 1, reference.shape).astype(np.float32)
    clipped = (reference + 0.02 * noise).astype(np.float32)
    clipped[:4] = np.clip(reference[:4], -3, 3)
    accurate, rough = (
        score_logits(recipe, reference, logits.astype(np.float32))
        for logits in (clipped, reference + 0.03 * noise)
    )
    assert accurate.sqnr_db + accurate.sqnr_db_p5 > rough.sqnr_db + rough.sqnr_db_p5 + 5
    assert accurate.merit < rough.merit


@pytest.mark.parametrize("limit", [0.0, 1000.0])
def test_a_long_comparison_of_rules_says_what_shortens_an_export(
    source: Source,
    limit: float,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("resdeploy.export.quantization.calibrate.LONG_SECONDS", limit)
    with caplog.at_level(logging.INFO, "resdeploy"):
        run(source, "auto")
    told = "comparing 9 rules for the INT8 ranges on 15 images takes about" in caplog.text
    assert told is (limit == 0)
    for option in ("--calibrator image", "--calibration-images", "--search-seconds"):
        assert (option in caplog.text) is told


def test_scoring_images_do_not_calibrate(source: Source) -> None:
    calibration = run(source, "auto", images=1000)
    everything = {
        image_digest(load_image(path, source.preprocessing)) for path in source.pools.calibration
    }
    assert set(calibration.digests) < everything
    assert len(calibration.digests) == 60 - len(calibration.scoring.images)


def test_the_same_images_give_the_same_ranges(source: Source) -> None:
    paths = source.pools.calibration
    shuffled = tuple(paths[index] for index in np.random.default_rng(0).permutation(len(paths)))
    other = dataclasses.replace(source, pools=ImagePools(calibration=shuffled))
    assert run(source, "auto").recipes == run(other, "auto").recipes


def test_ranges_do_not_depend_on_the_order_of_the_calibration_images(source: Source) -> None:
    # All images calibrate; the seed changes only their order.
    first, second = (run(source, "entropy", images=60, seed=seed) for seed in (0, 1))
    assert first.digests != second.digests
    assert sorted(first.digests) == sorted(second.digests)
    assert encode_recipes(first.recipes) == encode_recipes(second.recipes)


def test_skipped_images_change_only_their_count(
    source: Source, image_data: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(image_data, tmp_path / "data")
    (data / "train" / "red" / "damaged.png").write_bytes(b"\x89PNG")
    Image.new("RGB", (SIZE, SIZE), (9, 9, 9)).save(data / "train" / "red" / "flat.png")
    shutil.copy(data / "train" / "red" / "003.png", data / "train" / "red" / "copy.png")
    (data / "train" / "red" / "other.gif").touch()
    found = find_images(data / "train")
    pools = ImagePools(calibration=found.files, passed_over=found.passed_over)
    worse = dataclasses.replace(source, pools=pools)
    first, second = run(source, "auto", images=60), run(worse, "auto", images=60)
    assert second.skipped == {"unreadable": 1, "duplicate": 1, "constant": 1, ".gif": 1}
    assert sorted(first.digests) == sorted(second.digests)
    assert encode_recipes(first.recipes) == encode_recipes(second.recipes)


def test_each_encoding_has_its_own_ranges(source: Source) -> None:
    calibration = run(source, "mse")
    symmetric, asymmetric = (calibration.recipes[encoding].ranges for encoding in ENCODINGS)
    assert set(symmetric) == set(asymmetric)
    assert symmetric != asymmetric


def test_classes_are_counted_where_the_folders_are_the_labels(source: Source) -> None:
    unknown = dataclasses.replace(source, classes={})
    assert run(unknown, "max").balance is None
    named = dataclasses.replace(source, labels=CLASSES)
    balance = run(named, "max", images=60).balance
    assert balance is not None
    assert (balance.represented, balance.classes, balance.fewest, balance.most) == (3, 3, 20, 20)
    few = run(dataclasses.replace(source, labels=(*CLASSES, "other")), "max", images=1).balance
    assert few is not None
    assert (few.represented, few.classes, few.fewest, few.most) == (1, 4, 0, 1)


@pytest.mark.parametrize("int8_shortcuts", [False, True])
def test_tensorrts_shortcuts_are_int8_only_on_request(source: Source, int8_shortcuts: bool) -> None:
    calibration = calibrate(
        to_onnx(make_classifier(), SIZE), source, calibrator="max", images=40, seed=0,
        golden_digests=(), progress=silent, int8_shortcuts=int8_shortcuts,
    )  # fmt: skip
    found = {
        encoding: coverage(recipe.apply(calibration.model).graph, encoding)
        for encoding, recipe in with_dla(calibration, "max", silent).recipes.items()
    }
    assert found[Encoding.TENSORRT].int8_convs == found[Encoding.TENSORRT].convs
    additions = found[Encoding.CPU].additions
    assert found[Encoding.TENSORRT].fused_additions == (additions if int8_shortcuts else 0)
    assert found[Encoding.CPU].fused_additions == additions
    assert found[Encoding.DLA].fused_additions == additions


def test_folds_give_the_same_ranges_and_leave_out_their_own_images(source: Source) -> None:
    together = run(source, "entropy")
    apart = calibrate(
        to_onnx(make_classifier(), SIZE), source, calibrator="entropy", images=40, seed=0,
        golden_digests=(), progress=silent, cross_validated=33,
    )  # fmt: skip
    # The batches differ, so the kernels may add in another order.
    for encoding in ENCODINGS:
        for tensor, expected in together.recipes[encoding].ranges.items():
            found = apart.recipes[encoding].ranges[tensor]
            assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-4)
    assert [len(fold.images.images) for fold in apart.folds] == [7, 7, 7, 6, 6]
    assert [d for fold in apart.folds for d in fold.images.digests] == list(apart.digests[:33])
    for fold in apart.folds:
        assert {len(found.lows) for found in fold.others.values()} == {40 - len(fold.images.images)}


def test_images_can_be_reserved_for_a_search(source: Source) -> None:
    calibration = calibrate(
        to_onnx(make_classifier(), SIZE), source, calibrator="max", images=1000, seed=0,
        golden_digests=(), progress=silent, reserve=True,
    )  # fmt: skip
    assert len(calibration.scoring.images) == 15
    assert not set(calibration.scoring.digests) & set(calibration.digests)
    assert calibration.scores == ()
