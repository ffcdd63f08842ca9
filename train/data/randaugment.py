"""RandAugment: two random distortions out of fourteen, with the same magnitude.

Source: Cubuk, Zoph, Shlens, Le, "RandAugment: Practical automated data augmentation with a reduced
search space" (2019), arXiv:1909.13719, section 3. Magnitudes from 0 to 30 cover the ranges in
Cubuk et al., "AutoAugment" (2018), arXiv:1805.09501, table 6.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from resdeploy.images.preprocessing import UInt8Array

MAX_MAGNITUDE = 30
BILINEAR = Image.Resampling.BILINEAR
GREY = (124, 116, 104)  # ImageNet's mean colour, which fills the area outside of a moved image

Distortion = Callable[[Image.Image, float, float], Image.Image]
"""Function of an image, a strength from 0 to 1 and a sign of -1 or 1."""


def distort(pixels: UInt8Array, magnitude: int, generator: np.random.Generator) -> UInt8Array:
    """Distort an image, uint8 (H, W, 3), with a magnitude from 0 to 30."""
    picture = Image.fromarray(pixels)
    distortions = list(DISTORTIONS.values())
    for _ in range(2):
        distortion = distortions[generator.integers(len(distortions))]
        sign = 1.0 if generator.random() < 0.5 else -1.0
        picture = distortion(picture, magnitude / MAX_MAGNITUDE, sign)
    return np.array(picture)


def _affine(picture: Image.Image, *coefficients: float) -> Image.Image:
    """Move an image: output pixel (x, y) shows input pixel (ax + by + c, dx + ey + f)."""
    return picture.transform(
        picture.size, Image.Transform.AFFINE, coefficients, BILINEAR, fillcolor=GREY
    )


def _enhancement(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Distortion:
    return lambda picture, strength, sign: kind(picture).enhance(1 + 0.9 * strength * sign)


def _shear_x(picture: Image.Image, strength: float, sign: float) -> Image.Image:
    slope = 0.3 * strength * sign
    return _affine(picture, 1, slope, -slope * picture.height / 2, 0, 1, 0)  # keeps the centre


def _shear_y(picture: Image.Image, strength: float, sign: float) -> Image.Image:
    slope = 0.3 * strength * sign
    return _affine(picture, 1, 0, 0, slope, 1, -slope * picture.width / 2)


DISTORTIONS: dict[str, Distortion] = {
    "identity": lambda picture, strength, sign: picture,
    "autocontrast": lambda picture, strength, sign: ImageOps.autocontrast(picture),
    "equalize": lambda picture, strength, sign: ImageOps.equalize(picture),
    "rotate": lambda picture, strength, sign: picture.rotate(
        30 * strength * sign, BILINEAR, fillcolor=GREY
    ),
    "solarize": lambda picture, strength, sign: ImageOps.solarize(
        picture, round(256 * (1 - strength))
    ),
    "color": _enhancement(ImageEnhance.Color),
    "posterize": lambda picture, strength, sign: ImageOps.posterize(
        picture, 8 - round(4 * strength)
    ),
    "contrast": _enhancement(ImageEnhance.Contrast),
    "brightness": _enhancement(ImageEnhance.Brightness),
    "sharpness": _enhancement(ImageEnhance.Sharpness),
    "shear-x": _shear_x,
    "shear-y": _shear_y,
    "translate-x": lambda picture, strength, sign: _affine(
        picture, 1, 0, picture.width * 0.45 * strength * sign, 0, 1, 0
    ),
    "translate-y": lambda picture, strength, sign: _affine(
        picture, 1, 0, 0, 0, 1, picture.height * 0.45 * strength * sign
    ),
}
