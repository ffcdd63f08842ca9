"""Scaling gives the pixels of Pillow and of OpenCV."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resdeploy.images.geometry import place_picture
from resdeploy.images.loading import resize_and_crop
from resdeploy.images.preprocessing import Interpolation, Preprocessing, ResizeMode, UInt8Array
from resdeploy.images.resampling import MAX_SCALED_PIXELS, scale_and_cut, scale_box

cv2 = pytest.importorskip("cv2")  # the runtime of a board does not have it

OPENCV = {
    Interpolation.NEAREST: cv2.INTER_NEAREST,
    Interpolation.BILINEAR: cv2.INTER_LINEAR,
    Interpolation.BICUBIC: cv2.INTER_CUBIC,
    Interpolation.LANCZOS: cv2.INTER_LANCZOS4,
}


def noise(width: int, height: int) -> UInt8Array:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("chosen", Interpolation)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 90), st.integers(1, 90))
def test_without_antialiasing_the_pixels_are_those_of_opencv(
    chosen: Interpolation, width: int, height: int, rows: int, columns: int
) -> None:
    pixels = noise(width, height)
    ours = resize_and_crop(
        Image.fromarray(pixels),
        Preprocessing(
            image_size=(rows, columns), resize_mode=ResizeMode.SQUASH, interpolation=chosen,
            antialias=False,
        ),
    )  # fmt: skip
    theirs = cv2.resize(pixels, (columns, rows), interpolation=OPENCV[chosen])
    # OpenCV computes with weights of 11 bits and rounds twice.
    tolerance = 0 if chosen is Interpolation.NEAREST else 1
    assert np.abs(ours.astype(int) - theirs).max() <= tolerance


@pytest.mark.parametrize("chosen", Interpolation)
@given(st.integers(2, 90), st.integers(2, 90), st.integers(1, 40), st.integers(0, 9))
def test_a_part_without_antialiasing_equals_scaling_first_and_cutting_afterwards(
    chosen: Interpolation, width: int, height: int, size: int, margin: int
) -> None:
    image = Image.fromarray(noise(width, height))
    settings = Preprocessing(
        image_size=size, resize=size + margin, interpolation=chosen, antialias=False
    )
    rows, columns = place_picture(height, width, settings)
    scaled = cv2.resize(
        np.asarray(image), (columns.scaled, rows.scaled), interpolation=OPENCV[chosen]
    )
    part = scaled[
        rows.start : rows.start + rows.count, columns.start : columns.start + columns.count
    ]
    tolerance = 0 if chosen is Interpolation.NEAREST else 1
    assert np.abs(resize_and_crop(image, settings).astype(int) - part).max() <= tolerance


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("chosen", Interpolation)
@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 2), (1, 20_000), (20_000, 2)])
def test_a_very_long_picture_needs_little_memory(
    width: int, height: int, chosen: Interpolation, antialias: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    image = Image.new("RGB", (width, height), (9, 80, 200))
    settings = Preprocessing(image_size=224, interpolation=chosen, antialias=antialias)
    scaled: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def record(self: Image.Image, size: tuple[int, int], *args: Any, **kwargs: Any) -> Image.Image:
        scaled.append(size)
        return resize(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", record)
    tracemalloc.start()  # counts NumPy's memory, but not Pillow's
    try:
        pixels = resize_and_crop(image, settings)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert pixels.shape == (224, 224, 3)
    assert (pixels == (9, 80, 200)).all()
    # The whole scaled picture would have 224 * 224 * 10,000 pixels or more.
    assert all(math.prod(size) <= MAX_SCALED_PIXELS for size in scaled)
    assert peak < 20e6


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 9))
def test_only_the_centre_of_a_very_long_picture_is_scaled(
    height: int, size: int, margin: int
) -> None:
    pixels = noise(200 * height, height)
    settings = Preprocessing(image_size=size, resize=size + margin)
    rows, columns = place_picture(height, 200 * height, settings)
    ours = scale_and_cut(Image.fromarray(pixels), rows, columns, settings)
    (left, right), (upper, lower) = columns.span, rows.span
    part = scale_box(Image.fromarray(pixels), (left, upper, right, lower), (size, size), settings)
    assert rows.scaled * columns.scaled < MAX_SCALED_PIXELS
    # Pillow rounds to integers after each of two passes and stores a box in float32. A sum that
    # lies half-way may be rounded the other way in each pass: one step, and rarely two.
    assert np.abs(ours.astype(int) - part).max() <= 2


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("chosen", Interpolation)
def test_a_box_may_be_a_fraction_of_a_pixel(chosen: Interpolation, antialias: bool) -> None:
    image = Image.new("RGB", (4, 4), (9, 8, 7))
    settings = Preprocessing(image_size=8, interpolation=chosen, antialias=antialias)
    assert (scale_box(image, (0.2, 0.2, 0.7, 0.7), (8, 6), settings) == (9, 8, 7)).all()
