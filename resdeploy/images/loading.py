"""Conversion of image files and pictures to the network's input, the same in every stage."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from resdeploy.images.class_mapping import log_once
from resdeploy.images.decode import (
    LIMITS,
    REDUCTIONS,
    DecodingLimits,
    decoded_rgb,
    read_rgb,
    undecoded_file,
)
from resdeploy.images.geometry import place_picture
from resdeploy.images.preprocessing import Preprocessing, UInt8Array
from resdeploy.images.resampling import scale_and_cut, scale_box

if TYPE_CHECKING:
    from PIL.Image import Image

Picture: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | Image | np.ndarray"
"""A path, the content of a file, an image of Pillow, or pixels, uint8 (H, W), (H, W, 3 or 4)."""


def load_image(
    source: Path | bytes, preprocessing: Preprocessing, limits: DecodingLimits = LIMITS
) -> UInt8Array:
    """Decode, resize and crop one image file: uint8 (H, W, 3), with the size `preprocessing.size`.

    Raises:
        ImageError: The file cannot be decoded, or exceeds `limits`.
    """
    full_size = (1, 1)

    def shrink(width: int, height: int) -> float:
        nonlocal full_size
        full_size = width, height
        return _largest_reduction(width, height, preprocessing)

    picture = read_rgb(source, shrink, limits)
    factor = reduction_factor(full_size, picture.size)
    # The placement is computed from the size in the file, because the reduced size is rounded.
    return _convert(picture, preprocessing, full_size if factor > 1 else picture.size, factor)


def load_picture(source: Picture, preprocessing: Preprocessing) -> UInt8Array:
    """Return the network's input for a picture in any form: uint8 (H, W, 3).

    The same picture gives the same pixels in each form, with one exception: JPEG files that the
    pre-processing decodes at a lower resolution, if they come as pixels that are already decoded.

    Raises:
        ImageError: The picture cannot be decoded.
        TypeError, ValueError: It is no picture, or an array of another dtype or shape.
    """
    from PIL import Image as images

    if isinstance(source, (str, os.PathLike)):
        return load_image(Path(os.fsdecode(source)), preprocessing)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return load_image(bytes(source), preprocessing)
    if isinstance(source, np.ndarray):
        source = _from_pixels(source)
    if not isinstance(source, images.Image):
        raise TypeError(
            f"a picture is a path, the bytes of a file, an image of Pillow or an array of NumPy, "
            f"not a {type(source).__name__}"
        )
    if data := undecoded_file(source):
        return load_image(data, preprocessing)
    picture = decoded_rgb(source)
    if _largest_reduction(picture.width, picture.height, preprocessing) >= REDUCTIONS[1]:
        log_once(
            "this bundle decodes large JPEG files at a lower resolution; pictures that are given "
            "as decoded pixels are scaled from all of them, so predictions may differ slightly "
            "from those of the file",
            logging.WARNING,
        )
    return resize_and_crop(picture, preprocessing)


def _from_pixels(pixels: np.ndarray) -> Image:
    from PIL import Image as images

    if pixels.dtype != np.uint8:
        raise ValueError(f"pixels are {pixels.dtype}; give uint8 values from 0 to 255")
    if not pixels.size or not (
        pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    ):
        raise ValueError(
            f"pixels have the shape {pixels.shape}; give one picture of (height, width), "
            "(height, width, 3) for RGB or (height, width, 4) for RGB and alpha"
        )
    return images.fromarray(np.ascontiguousarray(pixels))


def resize_and_crop(image: Image, preprocessing: Preprocessing) -> UInt8Array:
    """Return the network's input for an RGB picture: uint8 (H, W, 3)."""
    return _convert(image, preprocessing, image.size, 1)


def _largest_reduction(width: int, height: int, preprocessing: Preprocessing) -> float:
    """Return the largest factor by which the decoder may reduce a picture."""
    if (gap := preprocessing.effective_gap) is None:
        return 1.0
    axes = place_picture(height, width, preprocessing)
    return min(axis.whole / (axis.scaled * gap) for axis in axes)


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
