"""What a user of the runtime holds: a bundle, loaded, that names pictures."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from resdeploy.bundle import Artifact, Bundle, Float32Array, open_bundle
from resdeploy.errors import BackendError, OutputError
from resdeploy.preprocessing import UInt8Array, load_image, prepare
from resdeploy.progress import Progress, silent
from resdeploy.runtime.backend import Backend, Opening
from resdeploy.runtime.golden import check_golden
from resdeploy.runtime.selection import AUTO, candidates

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

# Enough to notice an engine that computes nonsense, few enough not to be felt at start-up.
GOLDEN_IMAGES_AT_LOAD = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A class that a picture may show."""

    label: str
    index: int
    probability: float


class Model:
    """A verified classifier; use it as a context manager, or call `close`."""

    def __init__(self, bundle: Bundle, artifact: Artifact, backend: Backend) -> None:
        """Join the parts; `load` is the usual way to get a Model."""
        self.bundle = bundle
        self.artifact = artifact
        self.backend = backend
        self.labels = bundle.labels()

    def run(self, images: UInt8Array) -> Float32Array:
        """Logits, float32 (N, K), of prepared images, uint8 RGB (N, H, W, 3).

        Raises:
            ValueError: dtype or shape are not those of the model's input.
            BackendError: the engine failed.
        """
        size = self.bundle.manifest.preprocessing.image_size
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3) or not len(images):
            raise ValueError(
                f"images are {images.dtype} {images.shape}; the model takes uint8 "
                f"(N, {size}, {size}, 3) with N at least 1"
            )
        return self.backend.run(np.ascontiguousarray(images))

    def predict(
        self, image: str | os.PathLike[str] | bytes | Image, top: int = 5
    ) -> list[Prediction]:
        """The `top` most likely classes of one picture, the most likely first.

        Args:
            image: A path, a file's content, or an RGB picture of Pillow's.
            top: How many.

        Raises:
            ImageError: the picture cannot be decoded.
            BackendError: the engine failed.
        """
        preprocessing = self.bundle.manifest.preprocessing
        if isinstance(image, bytes):
            pixels = load_image(image, preprocessing)
        elif isinstance(image, (str, os.PathLike)):
            pixels = load_image(Path(image), preprocessing)
        else:
            pixels = prepare(image, preprocessing)
        probabilities = softmax(self.run(pixels[np.newaxis])[0])
        return [
            Prediction(
                label=self.labels[index],
                index=int(index),
                probability=float(probabilities[index]),
            )
            for index in np.argsort(-probabilities, kind="stable")[:top]
        ]

    def close(self) -> None:
        """Free the engine."""
        self.backend.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePredictions:
    """What `resdeploy predict` says of one file."""

    image: Path
    predictions: tuple[Prediction, ...]


def predict_files(model: Model, paths: Sequence[Path], top: int = 5) -> list[FilePredictions]:
    """Classify files one after the other.

    Raises:
        ImageError: a file cannot be decoded.
        BackendError: the engine failed.
    """
    return [
        FilePredictions(image=path, predictions=tuple(model.predict(path, top))) for path in paths
    ]


def load(
    path: str | os.PathLike[str],
    backend: str = AUTO,
    precision: str = AUTO,
    threads: int | None = None,
    progress: Progress = silent,
) -> Model:
    """Open a bundle with the usually fastest engine and precision that verify on this machine.

    Args:
        path: The bundle's folder.
        backend: An engine's name, or `auto`.
        precision: `fp32`, `fp16`, `int8`, or `auto`.
        threads: Threads for one inference on a CPU; None for one per core.
        progress: Told how far a TensorRT engine is that has to be built first.

    Raises:
        BackendError: nothing that was asked for can run here, or nothing gave PyTorch's answers.
        BundleError: the bundle is missing or damaged.
    """
    bundle = open_bundle(Path(path))
    golden = bundle.golden()
    for candidate in candidates(bundle, backend, precision):
        engine, artifact = candidate.engine.name, candidate.artifact
        opened: Backend | None = None
        try:
            opened = candidate.open(bundle, Opening(threads=threads, progress=progress))
            check = check_golden(opened, artifact, golden, images=GOLDEN_IMAGES_AT_LOAD)
        except (BackendError, OutputError) as error:
            logger.warning("%s cannot run %s: %s", engine, artifact.name, error)
            if opened is not None:
                opened.close()
            continue
        if check.passed:
            return Model(bundle, artifact, opened)
        opened.close()
        logger.warning(
            "%s gives other answers than PyTorch with %s (%s)", engine, artifact.name, check.figures
        )
    raise BackendError(
        f"no backend gives PyTorch's answers for {path} on this machine",
        "run resdeploy verify for the figures and resdeploy doctor for the cause",
    )


def softmax(logits: Float32Array) -> np.ndarray:
    """Probabilities (K,) of logits (K,), in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(powers / powers.sum())
