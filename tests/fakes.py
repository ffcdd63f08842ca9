"""Fakes of a backend and an engine, controlled by tests."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.golden import Float32Array, Golden
from resdeploy.bundle.manifest import Artifact
from resdeploy.errors import BackendError
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.backends.base import OpenOptions, Unavailability
from resdeploy.runtime.backends.registry import Engine
from tests.serving_process import PATIENCE


class GoldenBackend:
    """A backend that returns the golden logits times `factor`; it knows no other images."""

    name = "fake"

    def __init__(self, golden: Golden, factor: float = 1.0) -> None:
        self.factor = factor
        self.closed = False
        self.broken = False
        self.hold = threading.Event()
        """Event that a run waits for."""
        self.hold.set()
        self.held = False
        """True while a run waits."""
        self._logits = {
            image.tobytes(): logits for image, logits in zip(golden.images, golden.logits)
        }

    def run(self, images: UInt8Array) -> Float32Array:
        self.held = not self.hold.is_set()
        assert self.hold.wait(PATIENCE)
        self.held = False
        if self.is_broken():
            raise BackendError("it broke", "repair it")
        logits = np.stack([self._logits[image.tobytes()] for image in images])
        return np.asarray(self.factor * logits, dtype=np.float32)

    def is_broken(self) -> bool:
        return self.broken

    def close(self) -> None:
        self.closed = True


def make_engine(
    name: str = "fake",
    artifacts: tuple[str, ...] = ("fp32",),
    *,
    factor: float = 1.0,
    installed: bool = True,
    fails: bool = False,
    opened: Callable[[GoldenBackend], object] = lambda backend: None,
) -> Engine:
    """Return an engine of `GoldenBackend`s; `opened` is called with each backend it opens."""

    def open_artifact(bundle: Bundle, artifact: Artifact, options: OpenOptions) -> GoldenBackend:
        if fails:
            raise BackendError("it cannot be opened", "try again")
        backend = GoldenBackend(bundle.golden(), factor)
        opened(backend)
        return backend

    return Engine(
        name=name,
        open=open_artifact,
        check_availability=lambda: (
            None if installed else Unavailability(f"{name} is not installed", "get it")
        ),
        version=lambda: "1.0" if installed else None,
        artifacts=lambda version: artifacts,
    )


class ColourBackend:
    """A backend that classifies the pictures of `samples.write_images` by their colour.

    For the golden images it returns the golden logits, so that it passes the golden check.
    """

    name = "colours"

    def __init__(self, golden: Golden, *, constant: bool = False) -> None:
        """With `constant`, every other picture is the first class."""
        self._constant = constant
        self._golden = GoldenBackend(golden)
        self._known = {image.tobytes() for image in golden.images}

    def run(self, images: UInt8Array) -> Float32Array:
        if all(image.tobytes() in self._known for image in images):
            return self._golden.run(images)
        logits = images.mean(axis=(1, 2))[:, ::-1]  # blue, green, red, like samples.CLASSES
        return np.asarray(logits * 0 - np.arange(3) if self._constant else logits, dtype=np.float32)

    def close(self) -> None:
        pass


def colour_engine() -> Engine:
    """Return an engine of `ColourBackend`s, constant for a bundle with "constant" in its name."""
    return Engine(
        name=ColourBackend.name,
        open=lambda bundle, artifact, options: ColourBackend(
            bundle.golden(), constant="constant" in bundle.path.name
        ),
        check_availability=lambda: None,
        version=lambda: "1.0",
        artifacts=lambda version: ("fp32",),
    )
