"""RandAugment: two random distortions out of fourteen, with the same magnitude.

Source: Cubuk, Zoph, Shlens, Le, "RandAugment: Practical automated data augmentation with a reduced
search space" (2019), arXiv:1909.13719, section 3. Magnitudes from 0 to 30 cover the ranges in
Cubuk et al., "AutoAugment" (2018), arXiv:1805.09501, table 6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from resdeploy.images.preprocessing import UInt8Array

if TYPE_CHECKING:
    from PIL.Image import Image

DISTORTIONS_PER_IMAGE = 2
MAX_MAGNITUDE = 30
GREY = (124, 116, 104)  # ImageNet's mean colour, which fills the area outside of a moved image

Distortion = Callable[["Image", float, float], "Image"]
"""Function of an image, a strength from 0 to 1 and a sign of -1 or 1."""


def distort(pixels: UInt8Array, magnitude: int, generator: np.random.Generator) -> UInt8Array:
    """Distort an image, uint8 (H, W, 3), with a magnitude from 0 to 30."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    strength = magnitude / MAX_MAGNITUDE
    names = list(DISTORTIONS)
    for _ in range(DISTORTIONS_PER_IMAGE):
        name = names[generator.integers(len(names))]
        sign = 1.0 if generator.random() < 0.5 else -1.0
        picture = DISTORTIONS[name](picture, strength, sign)
    return np.array(picture)


def _affine(picture: Image, rows: tuple[float, float, float, float, float, float]) -> Image:
    from PIL import Image as images

    return picture.transform(
        picture.size, images.Transform.AFFINE, rows, images.Resampling.BILINEAR, fillcolor=GREY
    )


def _shear(picture: Image, along_x: float, along_y: float) -> Image:
    width, height = picture.size
    # The offsets keep the centre in place.
    return _affine(
        picture,
        (1, along_x, -along_x * height / 2, along_y, 1, -along_y * width / 2),
    )


def _rotate(picture: Image, strength: float, sign: float) -> Image:
    from PIL import Image as images

    return picture.rotate(30 * strength * sign, images.Resampling.BILINEAR, fillcolor=GREY)


def _enhancement(name: str) -> Distortion:
    def enhance(picture: Image, strength: float, sign: float) -> Image:
        from PIL import ImageEnhance

        enhanced: Image = getattr(ImageEnhance, name)(picture).enhance(1 + 0.9 * strength * sign)
        return enhanced

    return enhance


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


DISTORTIONS: dict[str, Distortion] = {
    "identity": lambda picture, strength, sign: picture,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "rotate": _rotate,
    "solarize": _solarize,
    "color": _enhancement("Color"),
    "posterize": _posterize,
    "contrast": _enhancement("Contrast"),
    "brightness": _enhancement("Brightness"),
    "sharpness": _enhancement("Sharpness"),
    "shear-x": lambda picture, strength, sign: _shear(picture, 0.3 * strength * sign, 0),
    "shear-y": lambda picture, strength, sign: _shear(picture, 0, 0.3 * strength * sign),
    "translate-x": lambda picture, strength, sign: _affine(
        picture, (1, 0, picture.width * 0.45 * strength * sign, 0, 1, 0)
    ),
    "translate-y": lambda picture, strength, sign: _affine(
        picture, (1, 0, 0, 0, 1, picture.height * 0.45 * strength * sign)
    ),
}
