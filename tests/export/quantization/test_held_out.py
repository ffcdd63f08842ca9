"""Held-out images: how many there should be, and which they are."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from resdeploy.errors import CalibrationError
from resdeploy.export.inputs import ImagePools, Source, read_source
from resdeploy.export.quantization.held_out import (
    FEWEST_IMAGES,
    ImagePlan,
    ImageUse,
    draw_held_out_images,
    plan_images,
    require_images,
)
from resdeploy.images.preprocessing import image_digest
from tests.samples import CLASSES, SIZE


@pytest.fixture
def source(tiny_checkpoint: Path, image_data: Path) -> Source:
    source = read_source(tiny_checkpoint, image_size=SIZE, calibration_data=image_data)
    return dataclasses.replace(source, labels=CLASSES)


def test_held_out_images_are_validation_images_with_no_other_use(source: Source) -> None:
    only = dataclasses.replace(source, pools=ImagePools(golden=source.pools.golden))
    everything = draw_held_out_images(only, 0, 100, used=())
    assert len(everything.images) == 24  # all of val/
    assert everything.classes is not None
    assert np.bincount(everything.classes).tolist() == [8, 8, 8]
    assert draw_held_out_images(source, 0, 100, used=()).digests[:24] == everything.digests
    half = draw_held_out_images(only, 0, 100, used=everything.digests[:12])
    assert sorted(half.digests) == sorted(everything.digests[12:])
    assert [image_digest(image) for image in half.images] == list(half.digests)


def test_no_held_out_image_may_be_left(source: Source) -> None:
    empty = dataclasses.replace(source, pools=ImagePools())
    nothing = draw_held_out_images(empty, 0, 100, used=())
    assert nothing.images.shape == (0, SIZE, SIZE, 3)
    known = draw_held_out_images(source, 0, 100, used=(), used_paths=source.pools.golden)
    assert len(known.images) == 60  # train/ alone
    assert len(known.part(10).plus(nothing).images) == 50


def plan(unused: int, calibrating: int, scoring: int, needed: int | None = 299) -> ImagePlan:
    return plan_images(
        size=32, unused=unused, calibrating=calibrating, scoring=scoring, target=True, needed=needed
    )


@pytest.mark.parametrize(
    ("unused", "calibrating", "scoring", "judged", "searched", "cross_validated"),
    [
        (0, 30, 15, 0, 0, 30),  # 60 photographs: everything that calibrates judges
        (0, 440, 128, 0, 0, 440),  # 600
        (4328, 512, 128, 2228, 2100, 0),  # 5,000: the halves are equal with the scoring images
        (50_000, 512, 128, 2560, 2432, 0),
        (700, 512, 128, 414, 286, 184),  # too few are held out, so a part is cross-validated
    ],
)
def test_images_are_divided_between_the_search_and_the_judgement(
    unused: int, calibrating: int, scoring: int, judged: int, searched: int, cross_validated: int
) -> None:
    assert plan(unused, calibrating, scoring) == ImagePlan(
        judged=judged, searched=searched, cross_validated=cross_validated, most=2560
    )


def test_a_strict_target_is_judged_on_as_many_images_as_it_needs() -> None:
    assert plan(50_000, 512, 128, needed=2995).judged == 5990


def test_without_a_target_a_bounded_number_of_images_is_judged() -> None:
    sizes = {"size": 224, "scoring": 128, "target": False, "needed": None}
    assert plan_images(unused=5000, calibrating=512, **sizes) == ImagePlan(  # type: ignore[arg-type]
        judged=128, searched=0, cross_validated=0, most=128
    )
    # Small pictures are judged in little time, but no weights are rounded for more than 128.
    sizes["size"] = 32
    assert plan_images(unused=5000, calibrating=512, **sizes).judged == 512  # type: ignore[arg-type]
    some = plan_images(unused=100, calibrating=512, **sizes)  # type: ignore[arg-type]
    assert (some.judged, some.cross_validated, some.most) == (100, 28, 128)
    assert plan_images(unused=0, calibrating=20, **sizes).cross_validated == 20  # type: ignore[arg-type]


PHOTOGRAPHS = ImageUse(
    size=128, available=160, validation=40, golden=32, wanted=512, compares=True, target=False,
    needed=None,
)  # fmt: skip


def test_each_set_of_images_is_named_with_its_use_and_its_largest_size() -> None:
    assert PHOTOGRAPHS.sentences(calibrating=120, scoring=40, folds=5) == [
        "used: 120 calibration images (at most 512); 40 further images, which only choose the "
        "calibrator; 8 other images, which judge the INT8 graphs (at most 128); 32 golden images, "
        "which verify the graphs anywhere",
        "120 of the calibration images also judge the INT8 graphs (at most 128 judge), by "
        "cross-validation: the weights are rounded 5 more times, each time without a part of the "
        "images (unnecessary with 120 more validation images)",
    ]


def test_the_images_that_make_cross_validation_unnecessary_are_enough_and_not_too_many() -> None:
    alone = dataclasses.replace(PHOTOGRAPHS, validation=None)
    for use in (PHOTOGRAPHS, alone, dataclasses.replace(PHOTOGRAPHS, target=True, needed=299)):
        told = use.sentences(calibrating=120, scoring=40, folds=5)[1]
        found = re.search(r"unnecessary with (\d+) more (validation )?images", told)
        assert found is not None
        assert (found[2] is None) == (use.validation is None)
        assert not use.plan(int(found[1])).cross_validated
        assert use.plan(int(found[1]) - 100).cross_validated


def test_enough_images_need_no_cross_validation() -> None:
    use = dataclasses.replace(PHOTOGRAPHS, validation=1000, target=True, compares=False)
    (used,) = use.sentences(calibrating=120, scoring=40, folds=0)
    assert "40 further images, which only choose the layers in float; " in used
    searched = use.plan().searched
    assert searched > 0
    assert f" {searched} further images, which only choose the layers in float; " in used
    assert " other images, which judge the INT8 graphs (at most " in used


def test_a_target_with_a_handful_of_images_is_refused_before_the_work(source: Source) -> None:
    few = dataclasses.replace(source, pools=ImagePools(calibration=source.pools.golden[:7]))
    with pytest.raises(CalibrationError, match="7 images are too few") as caught:
        require_images(few, FEWEST_IMAGES)
    assert "--calibration-data" in str(caught.value.hint)
    require_images(few, 1)
