"""RandAugment: two distortions, each drawn from fourteen, all of one magnitude.

Source: Cubuk, Zoph, Shlens, Le, "RandAugment: Practical automated data augmentation with a reduced
search space" (2019), arXiv:1909.13719, section 3; the ranges of the magnitudes are those of
Cubuk et al., "AutoAugment" (2018), arXiv:1805.09501, table 6, from 0 to 30 here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from resdeploy.images.preprocessing import UInt8Array

if TYPE_CHECKING:
    from PIL.Image import Image

DISTORTIONS = 2
LARGEST_MAGNITUDE = 30
GREY = (124, 116, 104)  # ImageNet's mean: what appears where the picture was moved away

Distortion = Callable[["Image", float, float], "Image"]
"""Of a picture, by a strength from 0 to 1, with a sign of -1 or 1."""


def distort(pixels: UInt8Array, magnitude: int, generator: np.random.Generator) -> UInt8Array:
    """Distort a picture, uint8 (H, W, 3), with a magnitude from 0 to 30."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    strength = magnitude / LARGEST_MAGNITUDE
    names = list(DISTORTION)
    for _ in range(DISTORTIONS):
        name = names[generator.integers(len(names))]
        sign = 1.0 if generator.random() < 0.5 else -1.0
        picture = DISTORTION[name](picture, strength, sign)
    return np.array(picture)


def _affine(picture: Image, rows: tuple[float, float, float, float, float, float]) -> Image:
    from PIL import Image as images

    return picture.transform(
        picture.size, images.Transform.AFFINE, rows, images.Resampling.BILINEAR, fillcolor=GREY
    )


def _shear(picture: Image, along_x: float, along_y: float) -> Image:
    width, height = picture.size
    # About the middle, which stays where it is.
    return _affine(
        picture,
        (1, along_x, -along_x * height / 2, along_y, 1, -along_y * width / 2),
    )


def _rotate(picture: Image, strength: float, sign: float) -> Image:
    from PIL import Image as images

    return picture.rotate(30 * strength * sign, images.Resampling.BILINEAR, fillcolor=GREY)


def _enhance(kind: str) -> Distortion:
    def change(picture: Image, strength: float, sign: float) -> Image:
        from PIL import ImageEnhance

        enhanced: Image = getattr(ImageEnhance, kind)(picture).enhance(1 + 0.9 * strength * sign)
        return enhanced

    return change


def _posterize(picture: Image, strength: float, sign: float) -> Image:
    from PIL import ImageOps

    return ImageOps.posterize(picture, 8 - round(4 * strength))


def _solarize(picture: Image, strength: float, sign: float) -> Image:
    from PIL import ImageOps

    return ImageOps.solarize(picture, round(256 * (1 - strength)))


def _autocontrast(picture: Image, strength: float, sign: float) -> Image:
    from PIL import ImageOps

    return ImageOps.autocontrast(picture)


def _equalize(picture: Image, strength: float, sign: float) -> Image:
    from PIL import ImageOps

    return ImageOps.equalize(picture)


DISTORTION: dict[str, Distortion] = {
    "identity": lambda picture, strength, sign: picture,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "rotate": _rotate,
    "solarize": _solarize,
    "color": _enhance("Color"),
    "posterize": _posterize,
    "contrast": _enhance("Contrast"),
    "brightness": _enhance("Brightness"),
    "sharpness": _enhance("Sharpness"),
    "shear-x": lambda picture, strength, sign: _shear(picture, 0.3 * strength * sign, 0),
    "shear-y": lambda picture, strength, sign: _shear(picture, 0, 0.3 * strength * sign),
    "translate-x": lambda picture, strength, sign: _affine(
        picture, (1, 0, picture.width * 0.45 * strength * sign, 0, 1, 0)
    ),
    "translate-y": lambda picture, strength, sign: _affine(
        picture, (1, 0, 0, 0, 1, picture.height * 0.45 * strength * sign)
    ),
}
