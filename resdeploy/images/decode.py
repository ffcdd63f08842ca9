"""Decoding of untrusted image files to RGB, with limits on size and format."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from resdeploy.errors import ImageError
from resdeploy.filesystem import read_limited
from resdeploy.images.formats import FORMATS, HEAD_BYTES, format_of
from resdeploy.images.structure import read_structure

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

MAX_IMAGE_BYTES = 64 << 20
ORIENTATION = 0x0112  # EXIF tag; the values 5 to 8 swap width and height
# Orientations that move the right or the bottom edge of the stored picture to another side.
MIRRORED = frozenset({2, 3, 4, 6, 7, 8})
REDUCTIONS = (1, 2, 4, 8)  # factors by which a JPEG decoder can reduce while it decodes
MAX_PIXELS = 100_000_000  # 400 MB in RGB; the largest phone cameras have 50 to 200 megapixels
MAX_MEMORY = 640 << 20  # bytes to decode one picture: enough for MAX_PIXELS of ordinary JPEG files
# Bytes per pixel: of a decoded picture, of its copy that is turned or converted to RGB, and of the
# steps that convert 16-bit grey. They are upper bounds of the measured peaks.
DECODED_BYTES, COPIED_BYTES, GREY_16_BYTES = 4, 4, 8
STRIP_PIXELS = 1 << 20  # of a transparent picture that are blended at a time
# A 16-bit picture is refused if its largest value is smaller: cameras and scanners of 10 to 14 bits
# store their values unscaled, and these pictures would be black or very dark.
MIN_HIGHEST_BYTE = 64  # upper byte; 64 * 256 is the first value that needs 15 bits

Shrink = Callable[[int, int], float]
"""Function from width and height of an upright picture, in pixels, to its largest reduction."""


@dataclass(frozen=True, slots=True)
class DecodingLimits:
    """Limits for the cost of one picture, which is known before it is decoded."""

    pixels: int = MAX_PIXELS
    memory: int = MAX_MEMORY
    """Bytes besides the file."""
    admit: Callable[[int, int], None] = lambda pixels, memory: None
    """Function that is called with the cost of a picture within the limits before decoding; it may
    wait, or raise a MemoryError."""

    def check(self, pixels: int, memory: int) -> None:
        """Raise an ImageError if a picture costs too much."""
        if pixels > self.pixels:
            raise ImageError(
                f"has {pixels:,} pixels; at most {self.pixels:,} are allowed", "scale it down first"
            )
        if memory > self.memory:
            raise ImageError(
                f"needs {memory >> 20} MiB to be decoded; at most {self.memory >> 20} are allowed",
                "scale it down first, or save it as a JPEG file that is not progressive",
            )


LIMITS = DecodingLimits()


def read_rgb(
    source: Path | bytes, shrink: Shrink | None = None, limits: DecodingLimits = LIMITS
) -> Image:
    """Decode one image file to RGB, upright according to its EXIF orientation.

    Grey, palette, CMYK and 16-bit images are converted; transparent pixels become white.

    Args:
        source: Path or content of a file.
        shrink: Limit for the reduction of a JPEG file, which makes decoding faster; other formats
            are decoded at full resolution.
        limits: Limits that are checked before decoding.

    Raises:
        ImageError: The file cannot be read, is damaged, is too large, or has an unknown format.
    """
    from PIL import Image, ImageOps

    name, data = "the image", source
    if isinstance(data, Path):
        name, data = str(data), read_picture_file(data)
    try:
        structure = read_structure(data, format_of(data[:HEAD_BYTES]))
        pixels = structure.width * structure.height
        memory = pixels * structure.bytes_per_pixel
        limits.check(pixels, memory)  # WebP needs this memory to be opened
        with warnings.catch_warnings():
            # Pillow warns about large sizes, which are limited below, and about odd metadata.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.size != (structure.width, structure.height):
                    raise OSError("its header is damaged")
                if not structure.ends:
                    raise OSError("its JPEG data has no end marker, so a part is missing")
                has_16_bits = image.format == "PNG" and data[24] == 16
                # Pillow decodes a PNG file to find its EXIF data.
                turned = b"eXIf" in data
                if image.format != "PNG":
                    turned = image.getexif().get(ORIENTATION, 1) != 1
                    if shrink is not None:
                        _decode_smaller(image, shrink)
                memory += _picture_memory(image, turned=turned)
                limits.check(pixels, memory)
                limits.admit(pixels, memory)
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                return _to_rgb(image, has_16_bits=has_16_bits)
    except ImageError as error:
        raise ImageError(f"{name} {error}", error.hint) from None
    except MemoryError:  # the machine's fault, not the picture's
        raise
    except Exception as error:  # Pillow's decoders raise exceptions of many types
        reason, hint = _explain(error, data)
        raise ImageError(f"{name} cannot be decoded: {reason}", hint) from error


def decoded_rgb(image: Image) -> Image:
    """Return a picture in memory, of any of Pillow's modes, as `read_rgb` returns its file.

    Values of more than 8 bits are those of a 16-bit file, from 0 to 65535.

    Raises:
        ImageError: The picture has no pixels, or values whose range is not known.
    """
    from PIL import ImageOps

    hint = "give the file, or convert the picture to RGB first"
    try:
        if not all(image.size):
            raise ImageError("has no pixels", "give a picture of at least one pixel")
        image.load()  # it may not be decoded yet
        if image.getexif().get(ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode == "La":  # Pillow converts it to no other mode
            image = image.convert("LA")
        if image.mode == "F" or (image.mode == "I" and not _fits_16_bits(image)):
            raise ImageError(f"has values of an unknown range, in Pillow's mode {image.mode}", hint)
        return _to_rgb(image, has_16_bits=image.mode.startswith("I"))
    except ImageError as error:
        raise ImageError(f"the image {error}", error.hint) from None
    except MemoryError:
        raise
    except Exception as error:  # of Pillow's decoders, as in `read_rgb`
        reason = str(error).strip().rstrip(".") or type(error).__name__
        if isinstance(error, AssertionError) or "closed file" in reason:  # as Pillow and Python say
            reason, hint = "its file is closed", "use it while its file is open, or call load()"
        raise ImageError(f"the image cannot be used: {reason}", hint) from error


def undecoded_file(image: Image) -> bytes | None:
    """Return the file that an image was opened from, unless it was decoded or changed since.

    The file allows more: a JPEG file can be decoded at a lower resolution.
    """
    from PIL import Image as images

    stream = getattr(image, "fp", None)
    is_untouched = getattr(image, "tile", None) and image.tell() == 0
    if image.format not in (*FORMATS, "MPO") or stream is None or not is_untouched:
        return None
    if stream.closed:
        return None
    position = stream.tell()
    stream.seek(0)
    data: bytes = stream.read(MAX_IMAGE_BYTES + 1)
    stream.seek(position)
    with images.open(io.BytesIO(data), formats=FORMATS) as whole:  # `draft` would have changed it
        same = (whole.size, whole.mode) == (image.size, image.mode)
        turned = [part.getexif().get(ORIENTATION, 1) for part in (whole, image)]
        return data if same and turned[0] == turned[1] else None


def _fits_16_bits(image: Image) -> bool:
    import numpy as np

    values = np.asarray(image)
    return bool(values.min() >= 0 and values.max() <= 65_535)


def read_picture_file(path: Path) -> bytes:
    """Return the content of a regular file of limited size.

    Raises:
        ImageError: The file cannot be read, is too large, or is a pipe or a device.
    """
    hint = f"name a readable image file of at most {MAX_IMAGE_BYTES >> 20} MiB"
    return read_limited(path, MAX_IMAGE_BYTES, ImageError, hint)


def _picture_memory(image: ImageFile, *, turned: bool) -> int:
    """Return the bytes of a picture, which may be reduced, and of its copies."""
    copied = image.mode != "RGB" or turned
    per_pixel = DECODED_BYTES + COPIED_BYTES * copied + GREY_16_BYTES * image.mode.startswith("I")
    return image.width * image.height * per_pixel


def _explain(error: Exception, data: bytes) -> tuple[str, str]:
    """Return the reason why a decoder failed, and the remedy."""
    from PIL import Image

    readable = "use a complete JPEG, PNG, WebP or BMP file"
    reason = str(error).split("<")[0].strip().rstrip(".") or type(error).__name__
    found = format_of(data[:HEAD_BYTES])
    if reason[1:2].islower():  # Pillow begins some of its messages with capitals
        reason = reason[0].lower() + reason[1:]
    if reason == "truncated File Read":  # of its reader of chunks
        reason = "it ends too early"
    if not data:
        reason = "it is empty"
    elif found and found not in FORMATS:
        reason = f"it is a {found} file"
    elif isinstance(error, Image.DecompressionBombError):
        return reason, "scale it down first"
    elif "MAX_TEXT" in reason:
        return "its text metadata exceeds Pillow's limit", "save it again without metadata"
    return reason, readable


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


def _to_rgb(image: Image, *, has_16_bits: bool) -> Image:
    import numpy as np

    if image.mode.startswith("I;16"):
        image = image.convert("I")
    if image.mode == "I":
        # Pillow's own conversion to 8 bits clips at 255 instead of scaling.
        image = image.point(lambda value: value / 256).convert("L")
    if has_16_bits:
        colours = 1 if len(image.getbands()) < 3 else 3
        highest = int(np.atleast_2d(image.getextrema())[:colours].max())
        if highest < MIN_HIGHEST_BYTE:
            raise ImageError(
                f"uses only the lower {8 + highest.bit_length()} of its 16 bits, so it would be "
                "decoded too dark",
                "scale its values to the range from 0 to 65535, or save it with 8 bits",
            )
    if image.has_transparency_data:
        return _blend_with_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _blend_with_white(image: Image) -> Image:
    """Return a transparent picture on white; it is blended in strips, which need less memory."""
    import numpy as np
    from PIL import Image as images

    result = images.new("RGB", image.size)
    darkest = least_opaque = 255
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        strip = image.crop(box).convert("RGBA")
        least_opaque = min(least_opaque, int(np.asarray(strip)[..., 3].min()))
        white = images.new("RGBA", strip.size, "white")
        blended = images.alpha_composite(white, strip).convert("RGB")
        darkest = min(darkest, int(np.asarray(blended).min()))
        result.paste(blended, box)
    if darkest == 255 > least_opaque:
        raise ImageError(
            "shows nothing: each of its pixels is transparent or white",
            "remove its alpha channel, or fill its background",
        )
    return result
