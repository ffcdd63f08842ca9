"""The transforms of other libraries, written out after their sources, as an independent reference.

Sources: torchvision 0.29.1, transforms/functional.py; timm 1.0.31, data/transforms.py and
data/transforms_factory.py; transformers 5.24.0, image_transforms.py.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageOps

from resdeploy.images.preprocessing import UInt8Array

Resampling = Image.Resampling


def torchvision_resize(image: Image.Image, short: int, filter: Resampling) -> Image.Image:
    """Do the same as `Resize(short)`."""
    w, h = image.size
    longer = int(short * max(w, h) / min(w, h))
    return image.resize((short, longer) if w <= h else (longer, short), filter)


def torchvision_crop(
    image: Image.Image, size: tuple[int, int], fill: tuple[int, int, int] = (0, 0, 0)
) -> UInt8Array:
    """Do the same as `CenterCrop(size)`, and as timm's `CenterCropOrPad(size, fill)`."""
    (height, width), (w, h) = size, image.size
    if width > w or height > h:
        padding = (
            (width - w) // 2 if width > w else 0,
            (height - h) // 2 if height > h else 0,
            (width - w + 1) // 2 if width > w else 0,
            (height - h + 1) // 2 if height > h else 0,
        )
        image = ImageOps.expand(image, padding, fill)
        w, h = image.size
    top, left = round((h - height) / 2.0), round((w - width) / 2.0)
    return np.array(image.crop((left, top, left + width, top + height)))


def timm_eval(
    image: Image.Image, size: tuple[int, int], crop_pct: float, crop_mode: str,
    filter: Resampling, fill: tuple[int, int, int],
) -> UInt8Array:  # fmt: skip
    """Do the same as `transforms_imagenet_eval`, without the normalisation."""
    scale = math.floor(size[0] / crop_pct), math.floor(size[1] / crop_pct)
    if crop_mode == "squash":
        return torchvision_crop(image.resize((scale[1], scale[0]), filter), size)
    longest = 1.0 if crop_mode == "border" else 0.0
    if crop_mode == "center" and scale[0] == scale[1]:
        return torchvision_crop(torchvision_resize(image, scale[0], filter), size)
    ratios = image.height / scale[0], image.width / scale[1]
    ratio = max(ratios) * longest + min(ratios) * (1.0 - longest)
    h, w = round(image.height / ratio), round(image.width / ratio)
    return torchvision_crop(image.resize((w, h), filter), size, fill)


def hugging_face(
    image: Image.Image, shortest_edge: int | None, size: tuple[int, int], filter: Resampling
) -> UInt8Array:
    """Do the same as `resize` to the shortest edge, if there is one, and `center_crop`."""
    if shortest_edge is not None:
        image = torchvision_resize(image, shortest_edge, filter)
    pixels = np.array(image)
    (h, w), (height, width) = pixels.shape[:2], size
    top, left = (h - height) // 2, (w - width) // 2
    if top >= 0 and top + height <= h and left >= 0 and left + width <= w:
        return pixels[top : top + height, left : left + width]
    new_h, new_w = max(height, h), max(width, w)
    padded = np.zeros((new_h, new_w, 3), np.uint8)
    top_pad, left_pad = math.ceil((new_h - h) / 2), math.ceil((new_w - w) / 2)
    padded[top_pad : top_pad + h, left_pad : left_pad + w] = pixels
    top, left = top + top_pad, left + left_pad
    return padded[max(0, top) : min(new_h, top + height), max(0, left) : min(new_w, left + width)]
