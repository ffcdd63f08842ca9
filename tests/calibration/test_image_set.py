"""Tests of the calibration images: order, batches, and counts of skipped images."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resdeploy.calibration.image_set import CalibrationImages, draw
from resdeploy.errors import CalibrationError
from resdeploy.images.preprocessing import Preprocessing, image_digest

PREPROCESSING = Preprocessing.standard(8)


def save(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    return [save(tmp_path / f"{seed}.png", seed) for seed in range(6)]


def batch_sizes(images: CalibrationImages, paths: list[Path], batch: int = 4) -> list[int]:
    return [len(pixels) for pixels in images.add(paths, batch)]


@given(st.lists(st.text("abc", min_size=1, max_size=4), unique=True), st.integers(0, 2**32))
def test_the_order_depends_on_the_set_of_files_only(names: list[str], seed: int) -> None:
    paths = [Path(name) for name in names]
    drawn = draw(paths, seed)
    assert sorted(drawn) == sorted(paths)
    assert draw(paths[::-1], seed) == drawn


@given(
    st.lists(st.text("abc", min_size=1, max_size=4), unique=True, min_size=2), st.integers(0, 99)
)
def test_an_additional_image_does_not_change_the_order_of_the_others(
    names: list[str], seed: int
) -> None:
    first, *others = [Path("folder") / name for name in names]
    assert [path for path in draw([first, *others], seed) if path != first] == draw(others, seed)


def test_the_order_does_not_depend_on_the_location_of_the_data() -> None:
    names = [f"{index}.png" for index in range(20)]
    here, there = (draw([Path(root, "red", name) for name in names], 3) for root in ("a", "b/c"))
    assert [path.name for path in here] == [path.name for path in there]


def test_the_order_depends_on_the_seed() -> None:
    paths = [Path(str(index)) for index in range(50)]
    assert draw(paths, 0) != draw(paths, 1)


def test_batches_end_at_the_wanted_number(pictures: list[Path]) -> None:
    images = CalibrationImages(PREPROCESSING, wanted=5)
    assert batch_sizes(images, pictures) == [4, 1]
    assert len(images.digests) == len(set(images.digests)) == 5
    assert images.skipped == {}


def test_digests_are_of_the_pixels(pictures: list[Path]) -> None:
    images = CalibrationImages(PREPROCESSING, wanted=2)
    (pixels,) = images.add(pictures, 8)
    assert images.digests == [image_digest(image) for image in pixels]
    assert image_digest(pixels[0]) == image_digest(np.asfortranarray(pixels[0]))


def test_skipped_images_are_counted_by_reason(
    pictures: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "damaged.png").write_bytes(pictures[0].read_bytes()[:50])
    Image.new("RGB", (8, 8), (250, 5, 5)).save(tmp_path / "flat.png")
    golden = image_digest(np.array(Image.open(pictures[1])))
    paths = [pictures[0], *tmp_path.glob("[df]*.png"), save(tmp_path / "again.png", 0), *pictures]
    images = CalibrationImages(PREPROCESSING, wanted=100, excluded={golden})
    with caplog.at_level(logging.INFO, "resdeploy"):
        assert sum(batch_sizes(images, paths)) == 5
    assert images.skipped == {
        "unreadable": 1, "duplicate": 2, "constant": 1, "golden": 1,
    }  # fmt: skip
    assert "damaged.png" in caplog.text
    assert "flat.png: it has pixels of one colour only" in caplog.text
    told = "not used as calibration images: 2 duplicate, 1 unreadable, 1 constant"
    assert sorted(told) == sorted(caplog.messages[-1])  # the order is that of the folder


def test_no_usable_image_is_an_error(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "flat.png")
    for paths, reason in (
        ([], "there are none"),
        ([tmp_path / "flat.png"], "1 constant"),
        ([tmp_path / "missing.png"], "1 unreadable"),
    ):
        with pytest.raises(CalibrationError, match=f"none of the calibration images .*: {reason}"):
            batch_sizes(CalibrationImages(PREPROCESSING, wanted=1), paths)
