"""How a training image differs from the file: a random part of it, mirrored, and distorted.

All randomness comes from the generator that is given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from resdeploy.preprocessing import UInt8Array, crop_and_resize
from resdeploy.train.randaugment import distort

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_STRETCH = 4 / 3
# The shorter side of the paper's images, of which 224 pixels are cut out.
SCALES = (256 / 224, 480 / 224)


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """Sources of the two crops.

    `area`: Szegedy et al., "Going deeper with convolutions" (2014), arXiv:1409.4842, section 6: a
    random part of the image, 3/4 to 4/3 as wide as high. `scale`: He et al. 2015,
    arXiv:1512.03385, section 3.4: a square out of the image at a random scale.
    """

    flip: bool
    """Mirror half of the images; wrong for digits and text."""
    min_area: float
    """Smallest share of the image's area that a crop may keep, above 0 and up to 1."""
    crop: str = "area"
    """`area` or `scale`."""
    randaugment: int = 0
    """Magnitude of two random distortions, 0 (none) to 30; see `randaugment.distort`."""

    def __post_init__(self) -> None:
        if not 0 < self.min_area <= 1:
            raise ValueError(f"min_area is {self.min_area}; it takes a share above 0, up to 1")


def augment(
    picture: Image, size: int, augmentation: Augmentation, generator: np.random.Generator
) -> UInt8Array:
    """A random part of an RGB picture, perhaps mirrored and distorted: uint8 (size, size, 3)."""
    box = _area_box if augmentation.crop == "area" else _scale_box
    pixels = crop_and_resize(picture, box(picture.size, augmentation, generator), size)
    if augmentation.flip and generator.random() < 0.5:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    if augmentation.randaugment:
        pixels = distort(pixels, augmentation.randaugment, generator)
    return pixels


Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge in pixels of the picture."""


def _area_box(
    shape: tuple[int, int], augmentation: Augmentation, generator: np.random.Generator
) -> Box:
    width, height = shape
    area = generator.uniform(augmentation.min_area, 1.0) * width * height
    # Close to the whole image the shape cannot vary much; log-uniform so that both ways are equal.
    limit = math.log(min(MAX_STRETCH, 1 / augmentation.min_area))
    ratio = math.exp(generator.uniform(-limit, limit))
    crop_width = min(width, math.sqrt(area * ratio))
    crop_height = min(height, math.sqrt(area / ratio))
    return _placed(shape, crop_width, crop_height, generator)


def _scale_box(
    shape: tuple[int, int], augmentation: Augmentation, generator: np.random.Generator
) -> Box:
    side = min(shape) / generator.uniform(*SCALES)
    return _placed(shape, side, side, generator)


def _placed(
    shape: tuple[int, int], width: float, height: float, generator: np.random.Generator
) -> Box:
    left = generator.uniform(0, shape[0] - width)
    upper = generator.uniform(0, shape[1] - height)
    return (left, upper, left + width, upper + height)
