"""Decoding of untrusted image files to RGB: limits first, any colour mode."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from resdeploy.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
MAX_FILE_BYTES = 64 << 20
ORIENTATION = 0x0112  # tag in EXIF; the values 5 to 8 swap width and height
# Orientations that move the right or the bottom edge of the file to another side.
MIRRORED = frozenset({2, 3, 4, 6, 7, 8})
REDUCTIONS = (1, 2, 4, 8)  # those of a JPEG decoder, in the cosine transform
MAX_PIXELS = 100_000_000  # 300 MB once decoded; the largest phone cameras take 50 to 200 Mpixel

Shrink = Callable[[int, int], float]
"""Takes an upright picture's width and height, returns how many times smaller it may be decoded."""


def read_rgb(
    source: Path | bytes, shrink: Shrink | None = None, max_pixels: int = MAX_PIXELS
) -> Image:
    """Decode one image file to RGB, upright according to its EXIF orientation.

    Grey, palette, CMYK and 16-bit images are converted; transparent pixels become white.

    Args:
        source: Path or content of a file.
        shrink: Largest reduction by a JPEG decoder, which uses 1, 2, 4 or 8 (in the cosine
            transform, which saves most of its work); other formats are decoded whole.
        max_pixels: Largest number of pixels; larger pictures are rejected before decoding.

    Raises:
        ImageError: The file cannot be read, is damaged, exceeds a limit, or has another format
            than `FORMATS`.
    """
    from PIL import Image, ImageOps

    name = "the image" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else _read_limited(source)
    try:
        with warnings.catch_warnings():
            # Pillow warns about size and odd metadata; the limits of this function replace that.
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
    # The decoder pads the last column and row. A mirrored picture has the padding on another side,
    # which moves it by a fraction of a pixel: there, only reductions that divide both sides do.
    may_pad = orientation not in MIRRORED
    by = max(
        n for n in REDUCTIONS if n <= max(factor, 1) and (may_pad or not (width % n or height % n))
    )
    if by > 1:
        image.draft(None, (max(width // by, 1), max(height // by, 1)))


def _read_limited(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ImageError(
            f"{path} cannot be read: {error.strerror or error}", "check the path"
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(
            f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB", "use a smaller image file"
        )
    return data


def _to_rgb(image: Image) -> Image:
    from PIL import Image as images

    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 instead of scaling.
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    elif image.mode == "I":
        image = image.point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = images.new("RGBA", image.size, "white")
        image = images.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")
