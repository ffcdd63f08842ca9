"""Sizes and offsets are those of torchvision, timm and Hugging Face, to the pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resdeploy.images.geometry import place_picture, scaled_size
from resdeploy.images.loading import resize_and_crop
from resdeploy.images.preprocessing import (
    CropOffset,
    Interpolation,
    Preprocessing,
    ResizeMode,
    UInt8Array,
)
from tests.resdeploy.images.reference_transforms import (
    hugging_face,
    timm_eval,
    torchvision_crop,
    torchvision_resize,
)

sides = st.integers(1, 80)
small = st.integers(1, 40)
filters = st.sampled_from(Interpolation)
FILL = (9, 80, 200)


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def check(ours: UInt8Array, theirs: UInt8Array) -> None:
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, theirs)


@given(sides, sides, small, small, st.integers(0, 9), filters)
def test_torchvision(
    width: int, height: int, rows: int, columns: int, margin: int, chosen: Interpolation
) -> None:
    short = max(rows, columns) + margin
    ours = resize_and_crop(
        picture(width, height),
        Preprocessing(image_size=(rows, columns), resize=short, interpolation=chosen),
    )
    scaled = torchvision_resize(picture(width, height), short, Image.Resampling[chosen.name])
    check(ours, torchvision_crop(scaled, (rows, columns)))


@pytest.mark.parametrize(
    ("crop_mode", "mode"),
    [
        ("center", ResizeMode.SHORTER), ("squash", ResizeMode.SQUASH), ("border", ResizeMode.PAD),
    ],
)  # fmt: skip
@given(sides, sides, small, small, st.floats(0.5, 1), filters)
def test_timm(
    crop_mode: str, mode: ResizeMode,
    width: int, height: int, rows: int, columns: int, crop_pct: float, chosen: Interpolation,
) -> None:  # fmt: skip
    if max(width, height) / min(width, height) > 2 * min(rows, columns):
        return  # timm scales such a picture to no rows or no columns, which Pillow refuses
    resize = math.floor(rows / crop_pct), math.floor(columns / crop_pct)
    ours = resize_and_crop(
        picture(width, height),
        Preprocessing(
            image_size=(rows, columns), resize=resize, resize_mode=mode, interpolation=chosen,
            pad_colour=FILL,
        ),
    )  # fmt: skip
    filter = Image.Resampling[chosen.name]
    image = picture(width, height)
    check(ours, timm_eval(image, (rows, columns), crop_pct, crop_mode, filter, FILL))


@given(sides, sides, small, small, st.integers(0, 9) | st.none(), filters)
def test_hugging_face(
    width: int, height: int, rows: int, columns: int, margin: int | None, chosen: Interpolation
) -> None:
    edge = None if margin is None else max(rows, columns) + margin
    ours = resize_and_crop(
        picture(width, height),
        Preprocessing(
            image_size=(rows, columns), resize=edge, interpolation=chosen,
            resize_mode=ResizeMode.NONE if edge is None else ResizeMode.SHORTER,
            crop_offset=CropOffset.DOWN,
        ),
    )  # fmt: skip
    filter = Image.Resampling[chosen.name]
    check(ours, hugging_face(picture(width, height), edge, (rows, columns), filter))


@given(sides, sides, small, small)
def test_without_a_resize_the_centre_is_cut_out_or_bordered(
    width: int, height: int, rows: int, columns: int
) -> None:
    chosen = Preprocessing(image_size=(rows, columns), resize_mode=ResizeMode.NONE, pad_colour=FILL)
    image = picture(width, height)
    check(resize_and_crop(image, chosen), torchvision_crop(image, (rows, columns), FILL))


@given(
    st.integers(1, 10**8), st.integers(1, 10**8), st.integers(1, 1024), st.integers(1, 1024),
    st.integers(0, 1024), st.sampled_from(ResizeMode), st.sampled_from(CropOffset),
)  # fmt: skip
def test_every_placement_lies_in_the_picture_and_in_the_input(
    width: int, height: int, rows: int, columns: int, margin: int, mode: ResizeMode,
    offset: CropOffset,
) -> None:  # fmt: skip
    chosen = Preprocessing(
        image_size=(rows, columns), resize=(rows + margin, columns + margin), resize_mode=mode,
        crop_offset=offset,
    )  # fmt: skip
    placement = place_picture(height, width, chosen)
    for axis, size, scaled in zip(
        placement, (rows, columns), scaled_size(height, width, chosen), strict=True
    ):
        assert axis.scaled == scaled >= 1
        assert axis.count == min(size, scaled)
        assert 0 <= axis.start <= axis.start + axis.count <= scaled
        assert 0 <= axis.border <= axis.border + axis.count <= size
        # Equal margins on both sides, or one pixel more on one of them.
        assert abs((scaled - axis.count - axis.start) - axis.start) <= 1
        assert abs((size - axis.count - axis.border) - axis.border) <= 1
        if mode in (ResizeMode.SHORTER, ResizeMode.SQUASH):
            assert axis.border == 0


@pytest.mark.parametrize(
    ("mode", "scaled"),
    [
        (ResizeMode.SHORTER, (100, 200)), (ResizeMode.SQUASH, (60, 200)),
        (ResizeMode.PAD, (60, 120)), (ResizeMode.NONE, (300, 600)),
    ],
)  # fmt: skip
def test_the_modes_scale_a_wide_picture(mode: ResizeMode, scaled: tuple[int, int]) -> None:
    chosen = Preprocessing(image_size=(50, 100), resize=(60, 200), resize_mode=mode)
    assert scaled_size(300, 600, chosen) == scaled
