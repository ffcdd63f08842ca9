"""Files become the network's input: decoding whole or reduced, placement, border."""

from __future__ import annotations

import io
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resdeploy.errors import ImageError
from resdeploy.images.decode import ORIENTATION
from resdeploy.images.loading import load_image, load_picture, reduction_factor, resize_and_crop
from resdeploy.images.preprocessing import Interpolation, Preprocessing, ResizeMode
from resdeploy.json_documents import jsonable, parse
from tests.samples import encoded


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_a_picture_of_the_right_size_is_unchanged() -> None:
    image = picture(32, 32)
    np.testing.assert_array_equal(
        resize_and_crop(image, Preprocessing.standard(32)), np.array(image)
    )


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5000), (5000, 1), (3, 2)])
def test_extreme_shapes(width: int, height: int) -> None:
    assert resize_and_crop(picture(width, height), Preprocessing.standard(32)).shape == (32, 32, 3)


def test_content_and_path_give_the_same(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("p") / "a.png"
    picture(50, 40).save(path)
    chosen = Preprocessing.standard(32)
    np.testing.assert_array_equal(load_image(path, chosen), load_image(path.read_bytes(), chosen))


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


@pytest.mark.parametrize(
    "settings",
    [
        {"resize_mode": ResizeMode.NONE},
        {"interpolation": Interpolation.NEAREST},
        {"antialias": False},
    ],
)
def test_settings_that_need_all_pixels_decode_whole(settings: dict[str, Any]) -> None:
    data = encoded(photograph(500, 333), "JPEG")
    chosen = Preprocessing(image_size=32, reducing_gap=1.0, **settings)
    whole = load_image(data, replace(chosen, reducing_gap=None))
    np.testing.assert_array_equal(load_image(data, chosen), whole)


@pytest.mark.parametrize("mode", [ResizeMode.SQUASH, ResizeMode.PAD, ResizeMode.SHORTER])
def test_reduced_decoding_in_every_mode(mode: ResizeMode) -> None:
    data = encoded(photograph(1001, 667), "JPEG", quality=95)
    chosen = Preprocessing(image_size=(32, 40), resize_mode=mode, reducing_gap=1.0)
    reduced, whole = (
        load_image(data, replace(chosen, reducing_gap=gap)).astype(int) for gap in (1.0, None)
    )
    assert (reduced != whole).any()
    # A shift by half a pixel would change 4 on average.
    assert np.abs(reduced - whole).mean() < 1


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 40), st.integers(0, 9))
def test_the_pixels_of_runs_are_those_of_earlier_versions(
    width: int, height: int, size: int, margin: int
) -> None:
    image, resize, shorter = picture(width, height), size + margin, min(width, height)
    # The computation of version 0.9 and earlier, whose runs and bundles must not change.
    scaled_width, scaled_height = int(resize * width / shorter), int(resize * height / shorter)
    left, upper = round((scaled_width - size) / 2), round((scaled_height - size) / 2)
    x_ratio, y_ratio = width / scaled_width, height / scaled_height
    box = left * x_ratio, upper * y_ratio, (left + size) * x_ratio, (upper + size) * y_ratio
    earlier = np.array(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    chosen = Preprocessing(image_size=size, resize=resize, reducing_gap=2.0)
    np.testing.assert_array_equal(resize_and_crop(image, chosen), earlier)


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


# Pictures in other forms than files

FULL = replace(Preprocessing.standard(32), reducing_gap=None)
HALVED = Preprocessing.standard(32)


def as_file(image: Image.Image, format: str, orientation: int = 1, **options: Any) -> bytes:
    exif, stream = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = orientation
    image.save(stream, format, **options | ({"exif": exif} if orientation > 1 else {}))
    return stream.getvalue()


def deep(highest: int) -> Image.Image:
    return Image.fromarray((np.arange(41 * 60).reshape(41, 60) * highest // 2459).astype(np.uint16))


PICTURE = picture(60, 41)
CLEAR = picture(60, 41)
CLEAR.putalpha(Image.linear_gradient("L").resize((60, 41)))
CLEAR_PALETTE = CLEAR.quantize(16)
FILES = {
    "L": as_file(PICTURE.convert("L"), "JPEG"),
    "RGB": as_file(PICTURE, "JPEG", 6),
    "CMYK": as_file(PICTURE.convert("CMYK"), "JPEG", 3),
    "YCbCr": as_file(PICTURE.convert("YCbCr"), "JPEG"),
    "1": as_file(PICTURE.convert("1"), "PNG", 8),
    "P": as_file(PICTURE.quantize(16), "PNG"),
    "P with alpha": as_file(CLEAR_PALETTE, "PNG"),
    "LA": as_file(CLEAR.convert("LA"), "PNG", 2),
    "RGBA": as_file(CLEAR, "PNG", 7),
    "RGBA of WebP": as_file(CLEAR, "WEBP", lossless=True),
    "a transparent colour": as_file(PICTURE, "PNG", transparency=PICTURE.getpixel((0, 0))),
    "I;16": as_file(deep(65_535), "PNG", 5),
    "BMP": as_file(PICTURE, "BMP"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_picture_gives_the_same_input_in_each_form(name: str) -> None:
    data = FILES[name]
    expected = load_image(data, FULL)
    opened, loaded = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(data))
    loaded.load()
    forms: list[Any] = [bytearray(data), memoryview(data), opened, loaded, loaded.copy()]
    for form in forms:
        np.testing.assert_array_equal(load_picture(form, FULL), expected)
    np.testing.assert_array_equal(opened, Image.open(io.BytesIO(data)))  # and is still usable


@pytest.mark.parametrize(
    ("mode", "same_as"),
    [
        ("1", "1"), ("L", "L"), ("P", "RGB"), ("RGBX", "RGB"), ("CMYK", "RGB"), ("PA", "RGB"),
        ("YCbCr", None), ("HSV", None), ("LAB", None), ("La", "LA"), ("RGBa", "RGBA"),
    ],
)  # fmt: skip
def test_images_of_every_mode_are_converted(mode: str, same_as: str | None) -> None:
    image = CLEAR if same_as in ("LA", "RGBA") else PICTURE.quantize(8).convert("RGB")
    if mode in ("La", "P", "PA"):
        image = image.convert("LA") if mode == "La" else image.convert("P")
    converted = image.convert(mode)
    expected = load_picture(image.convert(same_as or "RGB"), FULL).astype(int)
    # Conversion to other colours, and to multiplied alpha, rounds to 8 bits: by up to 8 for LAB.
    tolerance = 0 if same_as and mode not in ("La", "RGBa") else 10
    assert np.abs(load_picture(converted, FULL) - expected).max() <= tolerance


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B", "I;16L"])  # Pillow 11 damages I;16N
def test_images_of_16_bits_are_scaled_as_in_a_file(mode: str) -> None:
    expected = load_image(as_file(deep(65_535), "PNG"), FULL)
    image = deep(65_535).convert("I") if mode != "I;16" else deep(65_535)
    np.testing.assert_array_equal(load_picture(image.convert(mode), FULL), expected)
    with pytest.raises(ImageError, match="uses only the lower 12 of its 16 bits"):
        load_picture(deep(4095).convert("I").convert(mode), FULL)


def test_arrays_are_pictures_of_8_bits() -> None:
    for mode in ("L", "RGB", "RGBA"):
        image = CLEAR.convert(mode)
        pixels = np.asarray(image)
        for form in (pixels, np.asfortranarray(pixels), pixels[::-1][::-1]):
            np.testing.assert_array_equal(load_picture(form, FULL), load_picture(image, FULL))


def test_a_jpeg_image_that_is_not_decoded_yet_is_read_as_its_file(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = as_file(photograph(400, 300), "JPEG", 6)
    expected = load_image(data, HALVED)
    opened = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(load_picture(opened, HALVED), expected)
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING, "resdeploy"):
        pixels = load_picture(np.asarray(opened.rotate(-90, expand=True)), HALVED)
    assert "predictions may differ slightly" in caplog.text
    assert 0 < np.abs(pixels.astype(int) - expected).max() <= 12
    changed = Image.open(io.BytesIO(data))
    changed.draft("L", (100, 75))  # now another picture than the file
    assert np.ptp(load_picture(changed, HALVED), axis=2).max() == 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "a picture is a path, .* not a NoneType"),
        (3.5, "not a float"),
        ([PICTURE], "not a list"),
        (np.zeros((8, 8)), "pixels are float64; give uint8"),
        (np.zeros((8, 8), bool), "pixels are bool"),
        (np.zeros((8, 8, 3), np.int16), "pixels are int16"),
        (np.zeros((), np.uint8), r"the shape \(\)"),
        (np.zeros((3, 8, 9), np.uint8), r"the shape \(3, 8, 9\); give one picture"),
        (np.zeros((8, 8, 1), np.uint8), "the shape"),
        (np.zeros((1, 8, 8, 3), np.uint8), "the shape"),
        (np.zeros((0, 8, 3), np.uint8), "the shape"),
        (np.zeros((8, 0), np.uint8), "the shape"),
        (b"", "it is empty"),
        (b"\xff\xd8\xff", "cannot be decoded"),
        ("none.jpg", "none.jpg cannot be read: No such file"),
        (b"none.jpg", "cannot be decoded"),
        (Image.new("RGB", (0, 5)), "the image has no pixels"),
        (Image.new("F", (8, 8)), "values of an unknown range, in Pillow's mode F"),
        (Image.fromarray(np.full((8, 8), 70_000, np.int32)), "an unknown range"),
        (Image.fromarray(np.full((8, 8), -1, np.int32)), "an unknown range"),
        (Image.new("RGBA", (8, 8)), "shows nothing"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_what_is_no_picture_is_refused_in_one_sentence(source: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError, ImageError), match=message) as caught:
        load_picture(source, FULL)
    assert "\n" not in str(caught.value)


def test_a_damaged_image_of_pillow_is_refused_as_its_file() -> None:
    for format in ("JPEG", "TIFF"):  # a TIFF file is decoded by Pillow alone
        damaged = Image.open(io.BytesIO(as_file(PICTURE, format)[:-900]))
        with pytest.raises(ImageError, match="the image cannot be"):
            load_picture(damaged, FULL)
    whole = Image.open(io.BytesIO(as_file(PICTURE, "TIFF")))
    np.testing.assert_array_equal(load_picture(whole, FULL), load_picture(PICTURE, FULL))
