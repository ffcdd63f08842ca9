"""Scaling of a part of a picture: with Pillow's filters, or without antialiasing as in OpenCV."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from resdeploy.images.geometry import AxisPlacement
from resdeploy.images.preprocessing import Interpolation, Preprocessing, UInt8Array

if TYPE_CHECKING:
    from PIL.Image import Image, Resampling

Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge, in pixels of the picture."""
Array = npt.NDArray[np.float64]

# Pictures whose scaled size has more pixels than this, and than the picture itself, are so long
# that only their centre is scaled: 64 times as long as high if the height becomes 256 pixels.
MAX_SCALED_PIXELS = 1 << 22


def scale_and_cut(
    image: Image, rows: AxisPlacement, columns: AxisPlacement, preprocessing: Preprocessing
) -> UInt8Array:
    """Scale an RGB picture and cut out the part that the placements name: uint8 (H, W, 3).

    The pixels are those of scaling the whole picture first. With antialiasing, only the part is
    scaled if the whole would have more than `MAX_SCALED_PIXELS`; pixels then differ by at most 2.
    """
    if not preprocessing.antialias:
        vertical, horizontal = (
            _Axis(0.0, axis.whole, axis.scaled, axis.start, axis.count) for axis in (rows, columns)
        )
        return _sample(np.asarray(image), vertical, horizontal, preprocessing.interpolation)
    if columns.scaled * rows.scaled > max(MAX_SCALED_PIXELS, image.width * image.height):
        (left, right), (upper, lower) = columns.span, rows.span
        box = left, upper, right, lower
        return scale_box(image, box, (rows.count, columns.count), preprocessing)
    if image.size != (columns.scaled, rows.scaled):
        image = image.resize((columns.scaled, rows.scaled), _pillow_filter(preprocessing))
    left, upper = columns.start, rows.start
    return np.array(image.crop((left, upper, left + columns.count, upper + rows.count)))


def scale_box(
    image: Image, box: Box, size: tuple[int, int], preprocessing: Preprocessing
) -> UInt8Array:
    """Cut `box` out of an RGB picture and scale it to `size`, height and width: uint8 (H, W, 3)."""
    if preprocessing.antialias:
        shape = size[1], size[0]
        return np.array(image.resize(shape, _pillow_filter(preprocessing), box=box))
    left, upper, right, lower = box
    vertical = _Axis(upper, lower - upper, size[0], 0, size[0])
    horizontal = _Axis(left, right - left, size[1], 0, size[1])
    return _sample(np.asarray(image), vertical, horizontal, preprocessing.interpolation)


def _pillow_filter(preprocessing: Preprocessing) -> Resampling:
    from PIL.Image import Resampling

    return Resampling[preprocessing.interpolation.name]


@dataclass(frozen=True, slots=True)
class _Axis:
    """Pixels `first` to `first + count` of a part that is scaled from `length` to `scaled`."""

    origin: float
    """Start of the part, in pixels of the picture, as is `length`."""
    length: float
    scaled: int
    first: int
    count: int


def _sample(
    pixels: UInt8Array, vertical: _Axis, horizontal: _Axis, interpolation: Interpolation
) -> UInt8Array:
    """Return a part of a picture (H, W, 3), scaled with a filter of fixed width.

    The weights are those of OpenCV's `resize`, which rounds them to multiples of 1/2048.
    Source: OpenCV 4.14, modules/imgproc/src/resize.cpp.
    """
    rows, row_weights = _taps(vertical, len(pixels), interpolation)
    columns, column_weights = _taps(horizontal, pixels.shape[1], interpolation)
    needed_rows, rows = np.unique(rows, return_inverse=True)
    needed_columns, columns = np.unique(columns, return_inverse=True)
    needed = pixels.take(needed_rows, 0).take(needed_columns, 1)
    high = np.zeros((vertical.count, len(needed_columns), pixels.shape[2]), np.float32)
    for row, weight in zip(rows, row_weights):
        high += needed.take(row, 0) * weight[:, np.newaxis, np.newaxis]
    total = np.zeros((vertical.count, horizontal.count, pixels.shape[2]), np.float32)
    for column, weight in zip(columns, column_weights):
        total += high.take(column, 1) * weight[:, np.newaxis]
    return np.clip(np.rint(total), 0, 255).astype(np.uint8)


def _taps(
    axis: _Axis, limit: int, interpolation: Interpolation
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Return the pixels that the filter reads and their weights: both (taps, count)."""
    scale = 1 / (axis.scaled / axis.length)  # in this order, as OpenCV rounds it
    position = axis.first + np.arange(axis.count)
    if interpolation is Interpolation.NEAREST:
        nearest = np.floor(axis.origin + position * scale).astype(np.intp)
        return np.clip(nearest, 0, limit - 1)[np.newaxis], np.ones((1, axis.count), np.float32)
    centre = axis.origin + (position + 0.5) * scale - 0.5
    base = np.floor(centre).astype(np.intp)
    taps, kernel = KERNELS[interpolation]
    indices = base + np.arange(1 - taps // 2, 1 + taps // 2)[:, np.newaxis]
    weights = kernel(np.abs(centre - indices))
    # Pixels outside of the picture are those of its edge.
    return np.clip(indices, 0, limit - 1), (weights / weights.sum(0)).astype(np.float32)


def _cubic(distance: Array) -> Array:
    """Return Keys's cubic with a = -0.75; Pillow's has a = -0.5."""
    a = -0.75
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, far)


def _lanczos4(distance: Array) -> Array:
    return np.sinc(distance) * np.sinc(distance / 4)


# Number of pixels that a filter reads along an axis, and its weights by the distance in pixels.
KERNELS: dict[Interpolation, tuple[int, Callable[[Array], Array]]] = {
    Interpolation.BILINEAR: (2, lambda distance: 1 - distance),
    Interpolation.BICUBIC: (4, _cubic),
    Interpolation.LANCZOS: (8, _lanczos4),
}
