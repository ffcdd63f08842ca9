"""Every calibration image is counted, and used once."""

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


def admitted(ledger: CalibrationImages, paths: list[Path], batch: int = 4) -> list[int]:
    return [len(images) for images in ledger.admit(paths, batch)]


@given(st.lists(st.text("abc", min_size=1, max_size=4), unique=True), st.integers(0, 2**32))
def test_a_draw_is_a_shuffle_that_depends_on_the_set_only(names: list[str], seed: int) -> None:
    paths = [Path(name) for name in names]
    drawn = draw(paths, seed)
    assert sorted(drawn) == sorted(paths)
    assert draw(paths[::-1], seed) == drawn


@given(
    st.lists(st.text("abc", min_size=1, max_size=4), unique=True, min_size=2), st.integers(0, 99)
)
def test_an_image_more_leaves_the_others_in_their_order(names: list[str], seed: int) -> None:
    one, *others = [Path("folder") / name for name in names]
    assert [path for path in draw([one, *others], seed) if path != one] == draw(others, seed)


def test_the_order_does_not_depend_on_where_the_data_lies() -> None:
    names = [f"{index}.png" for index in range(20)]
    here, there = (draw([Path(root, "red", name) for name in names], 3) for root in ("a", "b/c"))
    assert [path.name for path in here] == [path.name for path in there]


def test_seeds_draw_differently() -> None:
    paths = [Path(str(index)) for index in range(50)]
    assert draw(paths, 0) != draw(paths, 1)


def test_batches_stop_at_the_number_wanted(pictures: list[Path]) -> None:
    ledger = CalibrationImages(PREPROCESSING, wanted=5)
    assert admitted(ledger, pictures) == [4, 1]
    assert len(ledger.digests) == len(set(ledger.digests)) == 5
    assert ledger.refused == {}


def test_digests_are_those_of_the_pixels(pictures: list[Path]) -> None:
    ledger = CalibrationImages(PREPROCESSING, wanted=2)
    (images,) = ledger.admit(pictures, 8)
    assert ledger.digests == [image_digest(image) for image in images]
    assert image_digest(images[0]) == image_digest(np.asfortranarray(images[0]))


def test_what_cannot_be_used_is_counted_by_reason(
    pictures: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "damaged.png").write_bytes(pictures[0].read_bytes()[:50])
    Image.new("RGB", (8, 8), (250, 5, 5)).save(tmp_path / "flat.png")
    golden = image_digest(np.array(Image.open(pictures[1])))
    paths = [pictures[0], *tmp_path.glob("[df]*.png"), save(tmp_path / "again.png", 0), *pictures]
    ledger = CalibrationImages(PREPROCESSING, wanted=100, excluded={golden})
    with caplog.at_level(logging.INFO, "resdeploy"):
        assert sum(admitted(ledger, paths)) == 5
    assert ledger.refused == {
        "unreadable": 1, "duplicate": 2, "constant": 1, "also used to verify": 1,
    }  # fmt: skip
    assert "damaged.png" in caplog.text
    assert "only 5 images can be used, of 100 wanted" in caplog.text


def test_not_one_usable_image_is_an_error(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "flat.png")
    for paths in ([], [tmp_path / "flat.png"], [tmp_path / "missing.png"]):
        with pytest.raises(CalibrationError, match="not one calibration image"):
            admitted(CalibrationImages(PREPROCESSING, wanted=1), paths)
