"""The one seam of the runtime: what every inference engine must be able to do."""

from __future__ import annotations

from typing import Protocol

from resdeploy.bundle import Float32Array
from resdeploy.preprocessing import UInt8Array


class Backend(Protocol):
    """One artifact, loaded into one engine on this machine."""

    name: str

    def run(self, images: UInt8Array) -> Float32Array:
        """Logits (N, K) of images (N, H, W, 3); N is at least 1.

        Raises:
            BackendError: the engine failed.
        """
        ...

    def close(self) -> None:
        """Free the engine; the backend cannot be used afterwards."""
        ...
