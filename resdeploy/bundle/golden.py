"""TODO."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from resdeploy.images.preprocessing import UInt8Array

BIT_EXACT_PREFIX = "bit-exact-"  # before an artifact's name, in golden.npz


Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """Images with the logits that PyTorch gave for them in FP32."""

    images: UInt8Array
    """Shape (N, H, W, 3)."""
    logits: Float32Array
    """Shape (N, K)."""
    bit_exact: Mapping[str, Float32Array] = field(default_factory=dict)
    """By artifact: the logits (N, K) that every CPU must give, to the last bit."""

    def to_bytes(self) -> bytes:
        """The content of `golden.npz`."""
        stream = io.BytesIO()
        bit_exact: dict[str, Any] = {
            f"{BIT_EXACT_PREFIX}{name}": given for name, given in self.bit_exact.items()
        }
        np.savez_compressed(stream, images=self.images, logits=self.logits, **bit_exact)
        return stream.getvalue()
