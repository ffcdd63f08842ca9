"""The public interface of the runtime: load a bundle and classify images."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Artifact, ExportWarning
from resdeploy.bundle.quality import relevant_warnings
from resdeploy.errors import BackendError, ImageError
from resdeploy.images.loading import load_image, resize_and_crop
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.images.skipped import has_single_colour
from resdeploy.predictions import Prediction, top_predictions
from resdeploy.progress import Progress, silent
from resdeploy.runtime.backends.base import AUTO, Backend, OpenOptions
from resdeploy.runtime.verification.open_verified import verified_backends

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)


class Model:
    """A verified classifier. Use it as a context manager, or call `close`."""

    def __init__(self, bundle: Bundle, artifact: Artifact, backend: Backend) -> None:
        """Combine an opened backend with its bundle; `load` is the usual way to get a Model."""
        self.bundle = bundle
        self.artifact = artifact
        self.backend = backend
        self.labels = bundle.labels()

    def __repr__(self) -> str:
        return f"<Model {self.bundle.path}: {self.artifact.name} on {self.backend.name}>"

    def run(self, images: UInt8Array) -> Float32Array:
        """Return the logits, float32 (N, K), of prepared images, uint8 RGB (N, H, W, 3).

        Raises:
            ValueError: The dtype or the shape is not that of the model's input.
            BackendError: The engine failed.
        """
        height, width = self.bundle.manifest.preprocessing.size
        if images.dtype != np.uint8 or images.shape[1:] != (height, width, 3) or not len(images):
            raise ValueError(
                f"images are {images.dtype} {images.shape}; the model takes uint8 "
                f"(N, {height}, {width}, 3) with N at least 1"
            )
        return self.backend.run(np.ascontiguousarray(images))

    def predict(
        self, image: str | os.PathLike[str] | bytes | Image, top: int = 5
    ) -> list[Prediction]:
        """Return the `top` most likely classes of one image, the most likely first.

        The image is a path, the content of a file, or an RGB image of Pillow.

        Raises:
            ImageError: The image cannot be decoded.
            ValueError: The image of Pillow is not RGB.
            BackendError: The engine failed.
        """
        return self.classify(self.pixels(image), top)

    def pixels(self, image: str | os.PathLike[str] | bytes | Image) -> UInt8Array:
        """Decode and pre-process an image of `predict`, with its errors: uint8 (H, W, 3)."""
        preprocessing = self.bundle.manifest.preprocessing
        if isinstance(image, bytes):
            return load_image(image, preprocessing)
        if isinstance(image, (str, os.PathLike)):
            return load_image(Path(image), preprocessing)
        if image.mode != "RGB":  # others with three channels, such as YCbCr, would pass unnoticed
            raise ValueError(f"the image has Pillow's mode {image.mode}; convert it to RGB first")
        return resize_and_crop(image, preprocessing)

    def classify(self, pixels: UInt8Array, top: int = 5) -> list[Prediction]:
        """Return the `top` most likely classes of a prepared image, uint8 (H, W, 3)."""
        return top_predictions(self.run(pixels[np.newaxis])[0], self.labels, top)

    @property
    def warnings(self) -> tuple[ExportWarning, ...]:
        """Doubts of the export about the graph that answers."""
        return relevant_warnings(self.bundle.manifest, [self.artifact.name])

    def close(self) -> None:
        self.backend.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePredictions:
    """The result of `resdeploy predict` for one file."""

    image: Path
    predictions: tuple[Prediction, ...]
    """Empty if the file cannot be decoded."""
    backend: str
    artifact: str
    error: str | None = None
    """Reason why the file cannot be decoded, with the remedy."""
    single_colour: bool = False
    """True if all pixels are equal, so that the predictions mean nothing."""


def predict_files(model: Model, paths: Sequence[Path], top: int = 5) -> list[FilePredictions]:
    """Classify files one after the other; a file that cannot be decoded does not stop the rest."""
    results = [_predict_file(model, path, top) for path in paths]
    for file in results:
        if file.error is not None:
            logger.error("%s", file.error)
    return results


def _predict_file(model: Model, path: Path, top: int) -> FilePredictions:
    backend, artifact = model.backend.name, model.artifact.name
    result = FilePredictions(image=path, predictions=(), backend=backend, artifact=artifact)
    try:
        pixels = model.pixels(path)
    except ImageError as error:
        return replace(result, error=f"{error}; {error.hint}")
    predictions = tuple(model.classify(pixels, top))
    return replace(result, predictions=predictions, single_colour=has_single_colour(pixels))


def load(
    path: str | os.PathLike[str],
    backend: str = AUTO,
    precision: str = AUTO,
    threads: int | None = None,
    progress: Progress = silent,
    *,
    exact: bool = False,
) -> Model:
    """Open a bundle with the first backend, fastest first, that passes the golden check.

    `auto` measures nothing here: it uses what `resdeploy serve` or `doctor` has measured before.

    Args:
        path: The folder of the bundle.
        backend: Name of a backend, or `auto`.
        precision: `fp32`, `fp16`, `int8`, or `auto`.
        threads: Threads for one inference on a CPU; None for one per core.
        progress: Reports the progress of a TensorRT engine that must be built first.
        exact: Accept only the bits of the export: `int8-cpu` on `onnxruntime-cpu`.

    Raises:
        BackendError: No selected backend can run here, or none passes the golden check.
        BundleError: The bundle is missing or damaged.
    """
    bundle = open_bundle(Path(path))
    options = OpenOptions(threads=threads, progress=progress, exact=exact)
    for candidate, opened in verified_backends(bundle, backend, precision, options):
        return Model(bundle, candidate.artifact, opened)
    raise BackendError(
        f"no backend reproduces PyTorch's logits for {path} on this machine",
        "run resdeploy verify for the figures and resdeploy doctor for the cause",
    )
