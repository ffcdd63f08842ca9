"""Resize and crop give the same pixels as Pillow's own operations in their usual order."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resdeploy.images.decode import ORIENTATION
from resdeploy.images.preprocessing import (
    Preprocessing,
    UInt8Array,
    crop_and_resize,
    load_image,
    reduction_factor,
    resize_and_crop,
)
from resdeploy.json_documents import jsonable, parse
from tests.samples import encoded


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def resize_then_crop(image: Image.Image, preprocessing: Preprocessing) -> UInt8Array:
    """Do the same as torchvision's Resize and CenterCrop, written independently."""
    width, height = image.size
    short, size = preprocessing.resize, preprocessing.image_size
    if width <= height:
        scaled = (short, int(short * height / width))
    else:
        scaled = (int(short * width / height), short)
    whole = image.resize(scaled, Image.Resampling.BILINEAR)
    left, upper = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    return np.array(whole.crop((left, upper, left + size, upper + size)))


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(1, 40),
    extra=st.integers(0, 9),
)
def test_same_pixels_as_scaling_first_and_cutting_afterwards(
    width: int, height: int, size: int, extra: int
) -> None:
    if max(width, height) / min(width, height) > 20:
        return  # Pillow would need too much memory for the whole scaled picture
    preprocessing = Preprocessing(image_size=size, resize=size + extra)
    image = picture(width, height)
    ours = resize_and_crop(image, preprocessing)
    assert ours.shape == (size, size, 3)
    assert ours.dtype == np.uint8
    # Pillow rounds to integers after each of two passes and stores a box in float32. A sum that
    # lies half-way may be rounded the other way in each pass: one step, and rarely two.
    difference = np.abs(ours.astype(int) - resize_then_crop(image, preprocessing))
    assert difference.max() <= 2


def test_a_picture_of_the_right_size_is_unchanged() -> None:
    image = picture(32, 32)
    np.testing.assert_array_equal(
        resize_and_crop(image, Preprocessing.standard(32)), np.array(image)
    )


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5000), (5000, 1), (3, 2)])
def test_extreme_shapes(width: int, height: int) -> None:
    assert resize_and_crop(picture(width, height), Preprocessing.standard(32)).shape == (32, 32, 3)


def test_a_crop_may_be_a_fraction_of_a_pixel() -> None:
    image = Image.new("RGB", (4, 4), (9, 8, 7))
    assert (crop_and_resize(image, (0.2, 0.2, 0.7, 0.7), 8) == (9, 8, 7)).all()


def test_content_and_path_give_the_same(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("p") / "a.png"
    picture(50, 40).save(path)
    chosen = Preprocessing.standard(32)
    np.testing.assert_array_equal(load_image(path, chosen), load_image(path.read_bytes(), chosen))


@pytest.mark.parametrize(("size", "resize"), [(224, 256), (32, 32), (64, 64), (128, 146)])
def test_standard_margins(size: int, resize: int) -> None:
    assert Preprocessing.standard(size).resize == resize


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 0},
        {"image_size": 2000},
        {"resize": 31},
        {"resize": 5000},
        {"std": (0.1, 0.0, 0.1)},
        {"std": (0.1, math.nan, 0.1)},
        {"mean": (math.inf, 0.5, 0.5)},
        {"reducing_gap": 0.5},
        {"reducing_gap": math.nan},
    ],
)
def test_rejects_invalid_settings(wrong: dict[str, object]) -> None:
    good: dict[str, object] = {"image_size": 32, "resize": 32}
    with pytest.raises(ValueError):
        Preprocessing(**(good | wrong))  # type: ignore[arg-type]


def photograph(width: int, height: int) -> Image.Image:
    """Return a smooth picture with edges, similar to a photograph."""
    x, y = np.meshgrid(np.linspace(0, 9, width), np.linspace(0, 7, height))
    waves = [np.sin(x + phase) * np.cos(y * (1 + phase / 3)) for phase in range(3)]
    pixels = 127 + 90 * np.stack(waves, axis=-1) + 30 * (x > y)[..., np.newaxis]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("format", ["JPEG", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(1000, 667), (668, 1000), (1022, 258), (500, 333)])
def test_reduced_decoding_hardly_changes_the_input_of_the_network(
    size: tuple[int, int], orientation: int, format: str
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(photograph(*size), format, quality=95, exif=exif)
    chosen = Preprocessing.standard(32)
    reduced, whole = load_image(data, chosen), load_image(data, replace(chosen, reducing_gap=None))
    assert (reduced != whole).any() or any(side % 2 for side in size)
    # A shift by half a pixel would change 4 on average; benchmarks/decoding.py has photographs.
    assert np.abs(reduced.astype(int) - whole).mean() < 1


@given(
    width=st.integers(1, 70), height=st.integers(1, 70), size=st.integers(1, 9),
    gap=st.floats(1, 4),
)  # fmt: skip
def test_any_size_of_jpeg_and_any_gap(width: int, height: int, size: int, gap: float) -> None:
    chosen = Preprocessing(image_size=size, resize=size, reducing_gap=gap)
    data = encoded(Image.new("RGB", (width, height), (90, 120, 150)), "JPEG")
    assert np.abs(load_image(data, chosen).astype(int) - (90, 120, 150)).max() <= 2


@pytest.mark.parametrize(
    ("whole", "decoded", "by"),
    [
        ((500, 333), (500, 333), 1), ((500, 333), (250, 167), 2), ((500, 333), (63, 42), 8),
        ((1, 1), (1, 1), 1), ((500, 333), (333, 500), 1),
    ],
)  # fmt: skip
def test_reduction_factor(whole: tuple[int, int], decoded: tuple[int, int], by: int) -> None:
    assert reduction_factor(whole, decoded) == by


def test_other_formats_are_decoded_whole() -> None:
    data = encoded(photograph(500, 333), "PNG")
    chosen = Preprocessing.standard(32)
    np.testing.assert_array_equal(
        load_image(data, chosen), resize_and_crop(photograph(500, 333), chosen)
    )


def test_settings_of_an_older_version_decode_whole() -> None:
    old = jsonable(Preprocessing.standard(32))
    del old["reducing_gap"]
    chosen = parse(Preprocessing, old)
    assert chosen.reducing_gap is None
    data = encoded(photograph(500, 333), "JPEG")
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(load_image(data, chosen), resize_and_crop(image, chosen))


def test_json_round_trip() -> None:
    chosen = Preprocessing(
        image_size=30, resize=35, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0), reducing_gap=1.5
    )
    assert parse(Preprocessing, jsonable(chosen)) == chosen


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"mean": [0.1, 0.2]}, "mean has 2 entries, not 3"),
        ({"mean": "abc"}, "mean is a string, not a list"),
        ({"image_size": None}, "image_size is null, not an integer"),
        ({"std": [0, 0, 0]}, "those of std above 0"),
    ],
)
def test_rejects_damaged_json(damage: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(Preprocessing, jsonable(Preprocessing.standard(32)) | damage)
