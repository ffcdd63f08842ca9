"""Conversion of image files and pictures to the network's input, the same in every stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resdeploy.images.decode import LIMITS, REDUCTIONS, DecodingLimits, read_rgb
from resdeploy.images.geometry import place_picture
from resdeploy.images.preprocessing import Preprocessing, UInt8Array
from resdeploy.images.resampling import scale_and_cut, scale_box

if TYPE_CHECKING:
    from PIL.Image import Image


def load_image(
    source: Path | bytes, preprocessing: Preprocessing, limits: DecodingLimits = LIMITS
) -> UInt8Array:
    """Decode, resize and crop one image file: uint8 (H, W, 3), with the size `preprocessing.size`.

    Raises:
        ImageError: The file cannot be decoded, or exceeds `limits`.
    """
    gap = preprocessing.effective_gap
    full_size = (1, 1)

    def shrink(width: int, height: int) -> float:
        nonlocal full_size
        full_size = width, height
        if gap is None:
            return 1.0
        axes = place_picture(height, width, preprocessing)
        return min(axis.whole / (axis.scaled * gap) for axis in axes)

    picture = read_rgb(source, shrink, limits)
    factor = reduction_factor(full_size, picture.size)
    # The placement is computed from the size in the file, because the reduced size is rounded.
    return _convert(picture, preprocessing, full_size if factor > 1 else picture.size, factor)


def resize_and_crop(image: Image, preprocessing: Preprocessing) -> UInt8Array:
    """Return the network's input for an RGB picture: uint8 (H, W, 3)."""
    return _convert(image, preprocessing, image.size, 1)


def reduction_factor(full_size: tuple[int, int], decoded: tuple[int, int]) -> int:
    """Return the factor by which a decoder reduced a picture: 1, 2, 4 or 8; 1 if none fits.

    Both sizes are width and height in pixels; decoders round the reduced size up.
    """
    width, height = full_size
    return next((n for n in REDUCTIONS if decoded == (-(-width // n), -(-height // n))), 1)


def _convert(
    picture: Image, preprocessing: Preprocessing, full_size: tuple[int, int], factor: int
) -> UInt8Array:
    """Return the network's input for a picture that was decoded with a reduction by `factor`."""
    rows, columns = place_picture(full_size[1], full_size[0], preprocessing)
    if preprocessing.effective_gap is None:
        part = scale_and_cut(picture, rows, columns, preprocessing)
    else:
        # The part of a reduced picture may begin within a pixel, so it is cut out before scaling.
        upper, lower, left, right = (edge / factor for edge in (*rows.span, *columns.span))
        box = left, upper, right, lower
        part = scale_box(picture, box, (rows.count, columns.count), preprocessing)
    if part.shape[:2] == preprocessing.size:
        return part
    framed = np.empty((*preprocessing.size, 3), np.uint8)
    framed[:] = preprocessing.pad_colour
    below, right_of = rows.border + rows.count, columns.border + columns.count
    framed[rows.border : below, columns.border : right_of] = part
    return framed
