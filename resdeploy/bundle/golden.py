"""Golden images and their expected logits: `golden.npz`, for checking graphs and engines."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from resdeploy.images.preprocessing import ImageSize, UInt8Array, height_and_width

BIT_EXACT_PREFIX = "bit-exact-"  # followed by the name of an artifact
MAX_GOLDEN_BYTES = 1 << 30

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """Golden images, and the logits that PyTorch computed for them in FP32."""

    images: UInt8Array
    """Shape (N, H, W, 3)."""
    logits: Float32Array
    """Shape (N, K)."""
    bit_exact: Mapping[str, Float32Array] = field(default_factory=dict)
    """Logits (N, K) that an artifact must compute on every CPU, bit for bit, by its name."""

    def to_bytes(self) -> bytes:
        """Return the content of `golden.npz`."""
        stream = io.BytesIO()
        bit_exact: dict[str, Any] = {
            BIT_EXACT_PREFIX + name: logits for name, logits in self.bit_exact.items()
        }
        np.savez_compressed(stream, images=self.images, logits=self.logits, **bit_exact)
        return stream.getvalue()


def read_golden(data: bytes, image_size: ImageSize, classes: int) -> Golden:
    """Return the golden images from the content of a `golden.npz`.

    Raises:
        Exception: The file is damaged (the type depends on the damage) or does not fit the model.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_GOLDEN_BYTES:
            raise ValueError(f"it unpacks to {size} bytes; at most {MAX_GOLDEN_BYTES} are allowed")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        images, logits = arrays["images"], arrays["logits"]
        bit_exact = {
            name.removeprefix(BIT_EXACT_PREFIX): arrays[name]
            for name in arrays.files
            if name.startswith(BIT_EXACT_PREFIX)
        }
    count = len(images)
    shape = (count, *height_and_width(image_size), 3)
    if images.dtype != np.uint8 or images.shape != shape or not count:
        raise ValueError(f"its images are {images.dtype} {images.shape}")
    for array in (logits, *bit_exact.values()):
        if array.dtype != np.float32 or array.shape != (count, classes):
            raise ValueError(f"its logits are {array.dtype} {array.shape}")
    return Golden(images=images, logits=logits, bit_exact=bit_exact)
