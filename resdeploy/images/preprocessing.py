"""From a picture to the network's input: one definition for every stage.

Resize and crop are data (they travel in the manifest) and run here; the normalisation is part
of the network's graph, which therefore takes plain uint8 pixels.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from resdeploy.images.decode import MAX_PIXELS, REDUCTIONS, read_rgb
from resdeploy.storage import sha256

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

# As text: the command line imports this module, and must start without NumPy.
UInt8Array: TypeAlias = "npt.NDArray[np.uint8]"
Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge in pixels of the picture."""

# Mean and deviation of ImageNet's training images, the usual constants for RGB in 0..1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_IMAGE_SIZE = 1024
# Pillow's own choice for thumbnails; benchmarks/decoding.py measures what it changes.
REDUCING_GAP = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How a picture becomes `image_size` x `image_size` RGB pixels, and how those are scaled."""

    image_size: int
    """Side of the square that the network sees, in pixels."""
    resize: int
    """The shorter side is scaled to this, in pixels, before the central square is cut out."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted in the graph, per channel, from pixels scaled to 0..1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Divided by in the graph, per channel."""
    interpolation: str = "bilinear"
    """With the filter widened when shrinking, as Pillow does."""
    reducing_gap: float | None = None
    """A JPEG file is decoded at 1/2, 1/4 or 1/8 of its resolution where its shorter side then still
    has at least this many times `resize` pixels; None: always whole."""

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= MAX_IMAGE_SIZE:
            raise ValueError(f"image size is {self.image_size}; it takes 1 to {MAX_IMAGE_SIZE}")
        if not self.image_size <= self.resize <= 2 * MAX_IMAGE_SIZE:
            raise ValueError(f"resize is {self.resize}; it takes at least {self.image_size}")
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if len(self.mean) != 3 or len(self.std) != 3 or not finite or min(self.std) <= 0:
            raise ValueError("mean and std take three finite numbers each, std above zero")
        if self.interpolation != "bilinear":
            raise ValueError(f"interpolation is {self.interpolation!r}; only 'bilinear' is known")
        if self.reducing_gap is not None and not 1 <= self.reducing_gap < math.inf:
            raise ValueError(f"reducing gap is {self.reducing_gap}; it takes at least 1")

    @classmethod
    def standard(cls, image_size: int) -> Preprocessing:
        """What ImageNet models expect (224 of 256), and no margin for thumbnails."""
        margin = 256 / 224 if image_size >= 128 else 1.0
        resize = round(image_size * margin)
        return cls(image_size=image_size, resize=resize, reducing_gap=REDUCING_GAP)

    def to_json(self) -> dict[str, Any]:
        """The form that `model.json` and the manifest hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Preprocessing:
        """Inverse of `to_json`.

        Raises:
            KeyError, ValueError, TypeError: `data` does not describe a pre-processing.
        """
        red, green, blue = (float(value) for value in data["mean"])
        std_red, std_green, std_blue = (float(value) for value in data["std"])
        gap = data.get("reducing_gap")  # what was written before there was one decodes whole
        return cls(
            image_size=int(data["image_size"]),
            resize=int(data["resize"]),
            mean=(red, green, blue),
            std=(std_red, std_green, std_blue),
            interpolation=str(data["interpolation"]),
            reducing_gap=None if gap is None else float(gap),
        )


def crop_and_resize(image: Image, box: Box, size: int) -> UInt8Array:
    """The part `box` of an RGB image as uint8 (size, size, 3)."""
    import numpy as np
    from PIL import Image as images

    if box == (0, 0, size, size) and image.size == (size, size):
        return np.array(image)
    return np.array(image.resize((size, size), images.Resampling.BILINEAR, box=box))


def central_box(width: int, height: int, preprocessing: Preprocessing) -> Box:
    """What of a picture the network sees, in pixels of the picture."""
    resize, size = preprocessing.resize, preprocessing.image_size
    # Integer sizes and offsets as torchvision's Resize and CenterCrop compute them.
    if width <= height:
        scaled_width, scaled_height = resize, int(resize * height / width)
    else:
        scaled_width, scaled_height = int(resize * width / height), resize
    left, upper = round((scaled_width - size) / 2), round((scaled_height - size) / 2)
    across, down = width / scaled_width, height / scaled_height
    return left * across, upper * down, (left + size) * across, (upper + size) * down


def prepare(image: Image, preprocessing: Preprocessing) -> UInt8Array:
    """Shorter side to `resize`, then the central square: uint8 (image_size, image_size, 3).

    The square is cut out of the source, so that an extremely long picture costs no memory; the
    pixels are those of scaling the whole picture first and cutting afterwards.
    """
    box = central_box(*image.size, preprocessing)
    return crop_and_resize(image, box, preprocessing.image_size)


def load_image(
    source: Path | bytes, preprocessing: Preprocessing, max_pixels: int = MAX_PIXELS
) -> UInt8Array:
    """Decode and prepare one image file: uint8 (image_size, image_size, 3).

    Raises:
        ImageError: the file cannot be decoded, or has more than `max_pixels`.
    """
    gap = preprocessing.reducing_gap
    whole = (1, 1)

    def shrink(width: int, height: int) -> float:
        nonlocal whole
        whole = width, height
        return 1.0 if gap is None else min(width, height) / (preprocessing.resize * gap)

    picture = read_rgb(source, shrink, max_pixels)
    by = reduction(whole, picture.size)
    # The box is that of the whole picture: of the smaller one, sizes would be rounded differently.
    box = central_box(*(whole if by > 1 else picture.size), preprocessing)
    left, upper, right, lower = (edge / by for edge in box)
    return crop_and_resize(picture, (left, upper, right, lower), preprocessing.image_size)


def reduction(whole: tuple[int, int], decoded: tuple[int, int]) -> int:
    """How many pixels in a row became one; sizes (width, height) are rounded up by decoders."""
    return next((by for by in REDUCTIONS if decoded == (-(-whole[0] // by), -(-whole[1] // by))), 1)


def image_digest(image: UInt8Array) -> str:
    """sha256 of an image's pixels as the network sees them."""
    import numpy as np

    return sha256(np.ascontiguousarray(image).data)
