"""Pre-processing that converts a picture to the network's input, the same in every stage.

This module resizes and crops, with the settings from the manifest. The normalisation is part of the
network's graph, whose input is therefore uint8 pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
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


class ResizeMode(str, Enum):
    """How a picture is brought to the size before the crop."""

    SHORTER = "shorter"  # keep the proportions; the picture covers the size
    SQUASH = "squash"  # change the proportions to those of the size
    PAD = "pad"  # keep the proportions; the picture lies within the size, in a coloured border
    NONE = "none"  # do not scale; only cut out the centre


class Interpolation(str, Enum):
    """Filter that scales pictures."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


class Channels(str, Enum):
    """Channels of the network's input, in their order."""

    RGB = "rgb"
    BGR = "bgr"
    GRAY = "gray"


class CropOffset(str, Enum):
    """Rounding of the crop's offset if the margins are an odd number of pixels."""

    EVEN = "even"  # to the nearest even number: torchvision, timm, resdeploy
    DOWN = "down"  # Hugging Face's image processors, OpenCV users' `// 2`


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """Settings of the conversion of a picture to the network's normalised input.

    A picture is resized to `resize`, its centre of `image_size` is cut out (uint8 RGB, the input of
    the graph), and the graph computes (values - mean) / std in the channels of the network.
    """

    image_size: int | tuple[int, int]
    """Side of the network's square input, or its height and width, in pixels."""
    resize: int | tuple[int, int] | None = None
    """Side, or height and width, before the centre is cut out, in pixels; None for `image_size`.
    With `ResizeMode.SHORTER`, the shorter side of the picture becomes a single number."""
    resize_mode: ResizeMode = ResizeMode.SHORTER
    interpolation: Interpolation = Interpolation.BILINEAR
    antialias: bool = True
    """True to widen the filter when a picture is made smaller, as Pillow does; False to sample
    without it, as OpenCV does."""
    pad_colour: tuple[int, int, int] = (0, 0, 0)
    """RGB colour of the border of `ResizeMode.PAD`, and where a crop exceeds the picture."""
    crop_offset: CropOffset = CropOffset.EVEN
    channels: Channels = Channels.RGB
    value_range: int = 1
    """Largest pixel value that mean and std refer to: 1 (pixels are divided by 255) or 255."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Value that the graph subtracts from each channel, in the order of `channels`."""
    std: tuple[float, ...] = IMAGENET_STD
    """Value by which the graph then divides each channel."""
    reducing_gap: float | None = None
    """Minimum shorter side of a JPEG decoded at 1/2, 1/4 or 1/8 resolution, as a multiple of
    `resize`; None decodes at full resolution."""

    def __post_init__(self) -> None:
        for side in self.size:
            if not 1 <= side <= MAX_IMAGE_SIZE:
                raise ValueError(f"image_size is {side}; 1 to {MAX_IMAGE_SIZE} are allowed")
        for side, smallest in zip(self.resized, self.size):
            if not 1 <= side <= 2 * MAX_IMAGE_SIZE:
                raise ValueError(f"resize is {side}; 1 to {2 * MAX_IMAGE_SIZE} are allowed")
            if side < smallest and self.resize_mode is not ResizeMode.PAD:
                raise ValueError(f"resize is {side}, less than the image_size {smallest}")
        count = 1 if self.channels is Channels.GRAY else 3
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if len(self.mean) != count or len(self.std) != count or not finite or min(self.std) <= 0:
            numbers = "one finite number" if count == 1 else "three finite numbers"
            raise ValueError(
                f"mean is {self.mean} and std is {self.std}; each must be {numbers}, "
                "those of std above 0"
            )
        if not all(0 <= value <= 255 for value in self.pad_colour):
            raise ValueError(f"pad_colour is {self.pad_colour}; 0 to 255 are allowed")
        if self.value_range not in (1, 255):
            raise ValueError(f"value_range is {self.value_range}; 1 and 255 are allowed")
        if self.reducing_gap is not None and not 1 <= self.reducing_gap < math.inf:
            raise ValueError(f"reducing_gap is {self.reducing_gap}; it must be at least 1")

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width of the network's input, in pixels."""
        return _pair(self.image_size)

    @property
    def resized(self) -> tuple[int, int]:
        """Return height and width that the resize aims at, in pixels."""
        return self.size if self.resize is None else _pair(self.resize)

    @classmethod
    def standard(cls, image_size: int) -> Preprocessing:
        """Return settings with ImageNet's margin (224 of 256 pixels), or none below 128 pixels."""
        resize = round(image_size * (256 / 224)) if image_size >= 128 else image_size
        return cls(image_size=image_size, resize=resize, reducing_gap=REDUCING_GAP)


def _pair(side: int | tuple[int, int]) -> tuple[int, int]:
    return (side, side) if isinstance(side, int) else side


def crop_and_resize(image: Image, box: Box, size: int) -> UInt8Array:
    """Cut `box` out of an RGB image and resize it: uint8 (size, size, 3)."""
    import numpy as np
    from PIL import Image as images

    return np.array(image.resize((size, size), images.Resampling.BILINEAR, box=box))


def central_box(width: int, height: int, preprocessing: Preprocessing) -> Box:
    """Return the part of a picture that becomes the network's input."""
    resize, size = preprocessing.resized[0], preprocessing.size[0]
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
    return crop_and_resize(image, box, preprocessing.size[0])


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
        return 1.0 if gap is None else min(width, height) / (preprocessing.resized[0] * gap)

    picture = read_rgb(source, shrink, max_pixels)
    factor = reduction_factor(full_size, picture.size)
    # The box is computed from the size in the file, because the reduced size is rounded.
    box = central_box(*(full_size if factor > 1 else picture.size), preprocessing)
    left, upper, right, lower = (edge / factor for edge in box)
    return crop_and_resize(picture, (left, upper, right, lower), preprocessing.size[0])


def reduction_factor(full_size: tuple[int, int], decoded: tuple[int, int]) -> int:
    """Return the factor by which a decoder reduced a picture: 1, 2, 4 or 8; 1 if none fits.

    Both sizes are width and height in pixels; decoders round the reduced size up.
    """
    width, height = full_size
    return next((n for n in REDUCTIONS if decoded == (-(-width // n), -(-height // n))), 1)


def image_digest(image: UInt8Array) -> str:
    """Return the sha256 of an image's pixels after pre-processing."""
    return sha256(image.tobytes())
