"""Decoding of untrusted image files to RGB, with limits on size and format."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from resdeploy.errors import ImageError
from resdeploy.filesystem import read_limited

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
MAX_FILE_BYTES = 64 << 20
ORIENTATION = 0x0112  # EXIF tag; the values 5 to 8 swap width and height
# Orientations that move the right or the bottom edge of the stored picture to another side.
MIRRORED = frozenset({2, 3, 4, 6, 7, 8})
REDUCTIONS = (1, 2, 4, 8)  # factors by which a JPEG decoder can reduce while it decodes
MAX_PIXELS = 100_000_000  # 300 MB in RGB; the largest phone cameras have 50 to 200 megapixels

Shrink = Callable[[int, int], float]
"""Function from width and height of an upright picture, in pixels, to its largest reduction."""


def read_rgb(
    source: Path | bytes, shrink: Shrink | None = None, max_pixels: int = MAX_PIXELS
) -> Image:
    """Decode one image file to RGB, upright according to its EXIF orientation.

    Grey, palette, CMYK and 16-bit images are converted; transparent pixels become white.

    Args:
        source: Path or content of a file.
        shrink: Limit for the reduction of a JPEG file, which makes decoding faster; other formats
            are decoded at full resolution.
        max_pixels: Limit for the number of pixels, which is checked before decoding.

    Raises:
        ImageError: The file cannot be read, is damaged, is too large, or has an unknown format.
    """
    from PIL import Image, ImageOps

    name, data = "the image", source
    if isinstance(data, Path):
        hint = f"name a readable image file of at most {MAX_FILE_BYTES >> 20} MiB"
        name, data = str(data), read_limited(data, MAX_FILE_BYTES, ImageError, hint)
    try:
        with warnings.catch_warnings():
            # Pillow warns about large sizes, which are limited below, and about odd metadata.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                pixels = image.width * image.height
                if pixels > max_pixels:
                    raise ImageError(
                        f"{name} has {pixels:,} pixels; at most {max_pixels:,} are allowed",
                        "scale it down first",
                    )
                if shrink is not None:
                    _decode_smaller(image, shrink)
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise exceptions of many types
        reason = str(error).split("<")[0].strip().rstrip(".") or type(error).__name__
        raise ImageError(
            f"{name} cannot be decoded: {reason}",
            f"use a complete {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file",
        ) from error


def _decode_smaller(image: ImageFile, shrink: Shrink) -> None:
    width, height = image.size
    orientation = image.getexif().get(ORIENTATION, 1)
    factor = shrink(height, width) if orientation >= 5 else shrink(width, height)
    # The decoder pads the last column and row if a side is not a multiple of the reduction. In a
    # mirrored picture, the padding would come first and move the picture by part of a pixel.
    may_pad = orientation not in MIRRORED
    reduction = max(
        n for n in REDUCTIONS if n <= max(factor, 1) and (may_pad or not (width % n or height % n))
    )
    if reduction > 1:
        image.draft(None, (max(width // reduction, 1), max(height // reduction, 1)))


def _to_rgb(image: Image) -> Image:
    from PIL import Image as images

    if image.mode.startswith("I;16"):
        image = image.convert("I")
    if image.mode == "I":
        # Pillow's own conversion to 8 bits clips at 255 instead of scaling.
        image = image.point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        white = images.new("RGBA", image.size, "white")
        image = images.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")
