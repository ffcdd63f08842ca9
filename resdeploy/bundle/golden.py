"""TODO."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from resdeploy.images.preprocessing import UInt8Array

EXACT = "exact-"  # before an artifact's name, in golden.npz


Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """Images with the logits that PyTorch gave for them in FP32."""

    images: UInt8Array
    """Shape (N, H, W, 3)."""
    logits: Float32Array
    """Shape (N, K)."""
    exact: Mapping[str, Float32Array] = field(default_factory=dict)
    """By artifact: the logits (N, K) that every CPU must give, to the last bit."""

    def to_bytes(self) -> bytes:
        """The content of `golden.npz`."""
        stream = io.BytesIO()
        exact: dict[str, Any] = {f"{EXACT}{name}": given for name, given in self.exact.items()}
        np.savez_compressed(stream, images=self.images, logits=self.logits, **exact)
        return stream.getvalue()
