"""Files become the network's input: decoding whole or reduced, placement, border."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resdeploy.images.decode import ORIENTATION
from resdeploy.images.loading import load_image, reduction_factor, resize_and_crop
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
