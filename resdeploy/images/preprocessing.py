"""Settings of the pre-processing that converts a picture to the network's input.

`loading` resizes and crops with them, the same in every stage. The order of the channels and the
normalisation are part of the network's graph, whose input is therefore uint8 RGB pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from resdeploy.filesystem import sha256

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ImageSize: TypeAlias = int | tuple[int, int]
"""Side of a square, or height and width, in pixels."""
# A string, because the command line imports this module and must start without NumPy.
UInt8Array: TypeAlias = "npt.NDArray[np.uint8]"
# Mean and standard deviation of ImageNet's RGB pixels, from 0 to 1: torchvision's constants.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_IMAGE_SIZE = 1024
# Pillow's default for thumbnails; benchmarks/decoding.py measures its effect on the predictions.
REDUCING_GAP = 2.0


class ResizeMode(str, Enum):
    """Way in which a picture is brought to the size before the crop."""

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

    image_size: ImageSize
    """Side of the network's square input, or its height and width, in pixels."""
    resize: ImageSize | None = None
    """Side, or height and width, before the centre is cut out, in pixels; None for `image_size`.
    With `ResizeMode.SHORTER`, a single number is the new length of the picture's shorter side."""
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
    """Smallest size of a JPEG decoded at 1/2, 1/4 or 1/8 resolution, as a multiple of the size
    after the resize; None decodes at full resolution."""

    def __post_init__(self) -> None:
        for name in ("image_size", "resize"):  # equal settings compare equal
            value = getattr(self, name)
            if isinstance(value, tuple) and value[0] == value[1]:
                object.__setattr__(self, name, value[0])
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
        return height_and_width(self.image_size)

    @property
    def resized(self) -> tuple[int, int]:
        """Return height and width that the resize aims at, in pixels."""
        return self.size if self.resize is None else height_and_width(self.resize)

    @property
    def effective_gap(self) -> float | None:
        """Return `reducing_gap`; None for filters without antialiasing, which need all pixels."""
        smooth = self.antialias and self.interpolation is not Interpolation.NEAREST
        return self.reducing_gap if smooth else None

    @classmethod
    def standard(
        cls, image_size: ImageSize, *, reducing_gap: float | None = REDUCING_GAP
    ) -> Preprocessing:
        """Return settings with ImageNet's margin (224 of 256 pixels), or none below 128 pixels."""
        height, width = height_and_width(image_size)
        margin = 256 / 224 if min(height, width) >= 128 else 1
        resize = round(height * margin), round(width * margin)
        return cls(image_size=image_size, resize=resize, reducing_gap=reducing_gap)


def height_and_width(size: ImageSize) -> tuple[int, int]:
    """Return height and width of a size that may be a single number."""
    return (size, size) if isinstance(size, int) else size


def pixel_count(size: ImageSize) -> int:
    """Return the number of pixels of an image of this size."""
    return math.prod(height_and_width(size))


def size_text(size: ImageSize | None) -> str:
    """Return a size as text: `224`, or `192x224` for height and width."""
    return "x".join(map(str, size)) if isinstance(size, tuple) else str(size)


def numbers_text(numbers: Sequence[float]) -> str:
    """Return numbers of up to six digits as the options take them: `0.485,0.456,0.406`."""
    return ",".join(f"{number:.6g}" for number in numbers)


def image_digest(image: UInt8Array) -> str:
    """Return the sha256 of an image's pixels after pre-processing."""
    return sha256(image.tobytes())
