"""Pre-processing that converts a picture to the network's input, the same in every stage.

This module resizes and crops, with the settings from the manifest. The normalisation is part of the
network's graph, whose input is therefore uint8 pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from resdeploy.filesystem import sha256
from resdeploy.images.decode import MAX_PIXELS, REDUCTIONS, read_rgb

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

# A string, because the command line imports this module and must start without NumPy.
UInt8Array: TypeAlias = "npt.NDArray[np.uint8]"
Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge, in pixels of the picture."""

# Mean and standard deviation of ImageNet's RGB pixels, from 0 to 1: torchvision's constants.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_IMAGE_SIZE = 1024
# Pillow's default for thumbnails; benchmarks/decoding.py measures its effect on the predictions.
REDUCING_GAP = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """Settings of the conversion of a picture to `image_size` x `image_size` normalised pixels."""

    image_size: int
    """Side of the network's square input, in pixels."""
    resize: int
    """Length of the shorter side before the central square is cut out, in pixels."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Value that the graph subtracts from each RGB channel, after scaling pixels to 0..1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Value by which the graph then divides each channel."""
    interpolation: str = "bilinear"
    """Filter of Pillow, which is widened when a picture is made smaller."""
    reducing_gap: float | None = None
    """Minimum shorter side of a JPEG decoded at 1/2, 1/4 or 1/8 resolution, as a multiple of
    `resize`; None, the value of older versions, decodes at full resolution."""

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= MAX_IMAGE_SIZE:
            raise ValueError(f"image_size is {self.image_size}; 1 to {MAX_IMAGE_SIZE} are allowed")
        if not self.image_size <= self.resize <= 2 * MAX_IMAGE_SIZE:
            allowed = f"{self.image_size} (the image_size) to {2 * MAX_IMAGE_SIZE} are allowed"
            raise ValueError(f"resize is {self.resize}; {allowed}")
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if len(self.mean) != 3 or len(self.std) != 3 or not finite or min(self.std) <= 0:
            raise ValueError(
                f"mean is {self.mean} and std is {self.std}; each must be three finite numbers, "
                "those of std above 0"
            )
        if self.interpolation != "bilinear":
            raise ValueError(f"interpolation is {self.interpolation!r}; only 'bilinear' is allowed")
        if self.reducing_gap is not None and not 1 <= self.reducing_gap < math.inf:
            raise ValueError(f"reducing_gap is {self.reducing_gap}; it must be at least 1")

    @classmethod
    def standard(cls, image_size: int) -> Preprocessing:
        """Return settings with ImageNet's margin (224 of 256 pixels), or none below 128 pixels."""
        resize = round(image_size * (256 / 224)) if image_size >= 128 else image_size
        return cls(image_size=image_size, resize=resize, reducing_gap=REDUCING_GAP)


def crop_and_resize(image: Image, box: Box, size: int) -> UInt8Array:
    """Cut `box` out of an RGB image and resize it: uint8 (size, size, 3)."""
    import numpy as np
    from PIL import Image as images

    return np.array(image.resize((size, size), images.Resampling.BILINEAR, box=box))


def central_box(width: int, height: int, preprocessing: Preprocessing) -> Box:
    """Return the part of a picture that becomes the network's input."""
    resize, size = preprocessing.resize, preprocessing.image_size
    # Integer sizes and offsets, computed as in torchvision's Resize and CenterCrop.
    shorter = min(width, height)
    scaled_width, scaled_height = int(resize * width / shorter), int(resize * height / shorter)
    left, upper = round((scaled_width - size) / 2), round((scaled_height - size) / 2)
    x_ratio, y_ratio = width / scaled_width, height / scaled_height
    return left * x_ratio, upper * y_ratio, (left + size) * x_ratio, (upper + size) * y_ratio


def resize_and_crop(image: Image, preprocessing: Preprocessing) -> UInt8Array:
    """Return the central square of a resized RGB image: uint8 (image_size, image_size, 3).

    The square is cut out before it is scaled, so that a very long picture needs little memory. The
    pixels are the same as if the whole picture were scaled first.
    """
    box = central_box(*image.size, preprocessing)
    return crop_and_resize(image, box, preprocessing.image_size)


def load_image(
    source: Path | bytes, preprocessing: Preprocessing, max_pixels: int = MAX_PIXELS
) -> UInt8Array:
    """Decode, resize and crop one image file: uint8 (image_size, image_size, 3).

    Raises:
        ImageError: The file cannot be decoded, or has more than `max_pixels`.
    """
    gap = preprocessing.reducing_gap
    full_size = (1, 1)

    def shrink(width: int, height: int) -> float:
        nonlocal full_size
        full_size = width, height
        return 1.0 if gap is None else min(width, height) / (preprocessing.resize * gap)

    picture = read_rgb(source, shrink, max_pixels)
    factor = reduction_factor(full_size, picture.size)
    # The box is computed from the size in the file, because the reduced size is rounded.
    box = central_box(*(full_size if factor > 1 else picture.size), preprocessing)
    left, upper, right, lower = (edge / factor for edge in box)
    return crop_and_resize(picture, (left, upper, right, lower), preprocessing.image_size)


def reduction_factor(full_size: tuple[int, int], decoded: tuple[int, int]) -> int:
    """Return the factor by which a decoder reduced a picture: 1, 2, 4 or 8; 1 if none fits.

    Both sizes are width and height in pixels; decoders round the reduced size up.
    """
    width, height = full_size
    return next((n for n in REDUCTIONS if decoded == (-(-width // n), -(-height // n))), 1)


def image_digest(image: UInt8Array) -> str:
    """Return the sha256 of an image's pixels after pre-processing."""
    return sha256(image.tobytes())
