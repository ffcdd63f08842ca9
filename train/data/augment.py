"""Augmentation of training images: random crops and distortions.

All randomness comes from the generator in the arguments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from resdeploy.images.decode import read_rgb
from resdeploy.images.preprocessing import Preprocessing, UInt8Array
from resdeploy.images.resampling import Box, scale_box
from resdeploy.train.data.randaugment import distort

# Shorter side of the paper's images, relative to the crop of 224 pixels.
SCALES = (256 / 224, 480 / 224)
Draws = npt.NDArray[np.float64]
"""Four random numbers from 0 to 1, for the size, aspect ratio, column and row of a crop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """The settings of the augmentation.

    The crop `area` has a random area and an aspect ratio from 3/4 to 4/3 (Szegedy et al., "Going
    deeper with convolutions", 2014, arXiv:1409.4842, section 6). The crop `scale` is a square from
    the randomly scaled image (He et al. 2015, arXiv:1512.03385, section 3.4).
    """

    flip: bool
    """True to mirror half of the images, in `Batch.to`; unsuitable for digits and text."""
    min_area: float
    """Smallest fraction of the image's area that an area crop may keep, above 0 and up to 1."""
    crop: str = "area"
    randaugment: int = 0
    """Magnitude of two random distortions, 0 (none) to 30; see `randaugment.distort`."""

    def __post_init__(self) -> None:
        if not 0 < self.min_area <= 1:
            raise ValueError(f"min_area is {self.min_area}; it must be above 0 and at most 1")


def augment(
    source: Path | bytes,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    generator: np.random.Generator,
) -> UInt8Array:
    """Return a random crop of an image file, with the distortions: uint8 (H, W, 3).

    It has the size and the interpolation of the pre-processing; aspect ratios are relative to it.

    A JPEG file is decoded at the lowest resolution that the crop needs.

    Raises:
        ImageError: The file cannot be decoded.
    """
    draws = generator.random(4)
    choose_box = _area_box if augmentation.crop == "area" else _scale_box
    size = preprocessing.size
    aspect = size[1] / size[0]

    def shrink(width: int, height: int) -> float:
        left, upper, right, lower = choose_box((width, height), aspect, augmentation, draws)
        return min((right - left) / size[1], (lower - upper) / size[0])

    picture = read_rgb(source, shrink)
    # The crop depends on the shape of the image, but not on its resolution.
    box = choose_box(picture.size, aspect, augmentation, draws)
    pixels = scale_box(picture, box, size, preprocessing)
    if augmentation.randaugment:
        pixels = distort(pixels, augmentation.randaugment, generator)
    return pixels


def _area_box(
    shape: tuple[int, int], aspect: float, augmentation: Augmentation, draws: Draws
) -> Box:
    width, height = shape
    least = augmentation.min_area
    area = (least + draws[0] * (1 - least)) * width * height
    # A crop of nearly the whole image leaves little room for other aspect ratios. The ratio is
    # log-uniform, so that wide and high crops are equally likely.
    ratio = aspect * min(4 / 3, 1 / least) ** (2 * draws[1] - 1)
    crop_width = min(width, math.sqrt(area * ratio))
    crop_height = min(height, math.sqrt(area / ratio))
    return _placed(shape, crop_width, crop_height, draws)


def _scale_box(
    shape: tuple[int, int], aspect: float, augmentation: Augmentation, draws: Draws
) -> Box:
    smallest, largest = SCALES
    width, height = shape
    crop_height = min(height, width / aspect) / (smallest + draws[0] * (largest - smallest))
    return _placed(shape, crop_height * aspect, crop_height, draws)


def _placed(shape: tuple[int, int], width: float, height: float, draws: Draws) -> Box:
    left = draws[2] * (shape[0] - width)
    upper = draws[3] * (shape[1] - height)
    return left, upper, left + width, upper + height
