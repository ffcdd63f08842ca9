"""Golden images and their expected logits: `golden.npz`, for checking graphs and engines."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from resdeploy.images.preprocessing import ImageSize, UInt8Array, height_and_width
from resdeploy.readable_text import readable

BIT_EXACT_PREFIX = "bit-exact-"  # followed by the name of an artifact
# An export takes 32 images of at most 1,024 pixels: 96 MiB. Reading takes twice that memory.
MAX_GOLDEN_BYTES = 1 << 27
MAX_ARRAYS = 16

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
        arrays = {"images": self.images, "logits": self.logits}
        arrays |= {BIT_EXACT_PREFIX + name: logits for name, logits in self.bit_exact.items()}
        contiguous: dict[str, Any] = {n: np.ascontiguousarray(a) for n, a in arrays.items()}
        np.savez_compressed(stream, **contiguous)
        return stream.getvalue()


def read_golden(data: bytes, image_size: ImageSize, classes: int, count: int) -> Golden:
    """Return the `count` golden images from the content of a `golden.npz`.

    The directory of the archive and the header of each array are checked before it is unpacked.

    Raises:
        Exception: The file is damaged (the type depends on the damage) or does not fit the model.
    """
    if data.count(b"PK\1\2") > MAX_ARRAYS:  # the signature of an entry
        raise ValueError(f"it holds more than {MAX_ARRAYS} arrays")
    images: UInt8Array | None = None
    logits: dict[str, Float32Array] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        size = sum(entry.file_size for entry in entries)
        if size > MAX_GOLDEN_BYTES:
            raise ValueError(f"it unpacks to {size} bytes; at most {MAX_GOLDEN_BYTES} are allowed")
        if len(set(archive.namelist())) != len(entries):
            raise ValueError("it holds two arrays of the same name")
        for entry in entries:
            name = entry.filename.removesuffix(".npy")
            if name == "images":
                shape = (count, *height_and_width(image_size), 3)
                images = _read_array(archive, entry, np.dtype(np.uint8), shape)
            elif name == "logits" or name.startswith(BIT_EXACT_PREFIX):
                logits[name] = _read_array(archive, entry, np.dtype("<f4"), (count, classes))
            else:
                raise ValueError(f"it holds an unknown array {readable(name)!r:.60}")
    if images is None or "logits" not in logits or not count:
        raise ValueError("it holds no images or no logits")
    expected = logits.pop("logits")
    bit_exact = {name.removeprefix(BIT_EXACT_PREFIX): value for name, value in logits.items()}
    return Golden(images=images, logits=expected, bit_exact=bit_exact)


def _read_array(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    """Return an array, which must have this data type and shape.

    Source of the format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
    """
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0(stream)
        if (version, *header) != ((1, 0), shape, False, dtype):
            found = f"{header[2]!s:.40} {header[0]!s:.80}"
            raise ValueError(f"its {entry.filename!r:.60} is {found}, not {dtype} {shape}")
        size = math.prod(shape) * dtype.itemsize
        content = stream.read(size + 1)  # to the end, where the checksum is compared
    return np.frombuffer(bytearray(content), dtype).reshape(shape)
