"""Sizes and offsets of the pre-processing: where each pixel of the network's input comes from.

Sources: torchvision 0.29.1, transforms/functional.py (`_compute_resized_output_size`,
`center_crop`); timm 1.0.31, data/transforms.py (`ResizeKeepRatio`, `center_crop_or_pad`);
transformers 5.24.0, image_transforms.py (`get_resize_output_image_size`, `center_crop`).
"""

from __future__ import annotations

from dataclasses import dataclass

from resdeploy.images.preprocessing import CropOffset, Preprocessing, ResizeMode


@dataclass(frozen=True, slots=True)
class AxisPlacement:
    """The part of a scaled picture that the network sees, along one axis, in pixels."""

    whole: int
    """Size of the picture before scaling."""
    scaled: int
    """Size of the whole picture after scaling."""
    start: int
    """First pixel of the scaled picture in the network's input."""
    count: int
    """Number of pixels of the scaled picture in the network's input."""
    border: int
    """Number of border pixels before them in the network's input."""

    @property
    def span(self) -> tuple[float, float]:
        """Return start and end of the part in pixels of the picture before scaling."""
        ratio = self.whole / self.scaled
        return self.start * ratio, (self.start + self.count) * ratio


def place_picture(
    height: int, width: int, preprocessing: Preprocessing
) -> tuple[AxisPlacement, AxisPlacement]:
    """Return the vertical and the horizontal placement of a picture of this size in pixels."""
    scaled = scaled_size(height, width, preprocessing)
    rows, columns = (
        _place(*axis, preprocessing.crop_offset)
        for axis in zip((height, width), scaled, preprocessing.size)
    )
    return rows, columns


def scaled_size(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Return height and width of a picture after scaling, before the crop."""
    mode, target = preprocessing.resize_mode, preprocessing.resized
    if mode is ResizeMode.NONE:
        return height, width
    if mode is ResizeMode.SQUASH:
        return target
    if mode is ResizeMode.SHORTER and target[0] == target[1]:  # torchvision and Hugging Face
        shorter = min(height, width)
        return int(target[0] * height / shorter), int(target[0] * width / shorter)
    choose = min if mode is ResizeMode.SHORTER else max  # timm
    ratio = choose(height / target[0], width / target[1])
    # A very long picture would have no row or no column left within a border.
    return max(round(height / ratio), 1), max(round(width / ratio), 1)


def _place(whole: int, scaled: int, size: int, rounding: CropOffset) -> AxisPlacement:
    margin = scaled - size
    if rounding is CropOffset.DOWN:
        offset = margin // 2
    elif margin >= 0:
        offset = round(margin / 2)  # half-way cases to the nearest even number
    else:
        offset = -(-margin // 2)  # torchvision and timm round the border down
    start = max(offset, 0)
    return AxisPlacement(
        whole=whole,
        scaled=scaled,
        start=start,
        count=min(offset + size, scaled) - start,
        border=max(-offset, 0),
    )
