"""The public interface of the runtime: load a bundle and classify images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

import numpy as np

from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Artifact, ExportWarning
from resdeploy.bundle.quality import relevant_warnings
from resdeploy.errors import BackendError, ImageError
from resdeploy.images.loading import Picture, load_picture
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.machine.device import available_cores
from resdeploy.predictions import Prediction, top_predictions
from resdeploy.progress import Progress, silent
from resdeploy.runtime.backends.base import AUTO, Backend, OpenOptions
from resdeploy.runtime.verification.open_verified import verified_backends
from resdeploy.tables import plural

# Images in one inference of many. Larger batches are no faster on a CPU and need more memory.
CPU_BATCH, GPU_BATCH = 8, 32


class Model:
    """A verified classifier. Use it as a context manager, or call `close`."""

    def __init__(
        self, bundle: Bundle, artifact: Artifact, backend: Backend, cpu_threads: int | None
    ) -> None:
        """Combine an opened backend with its bundle; `load` is the usual way to get a Model."""
        self.bundle = bundle
        self.artifact = artifact
        self.backend = backend
        self.labels = bundle.labels()
        self.preprocessing = bundle.manifest.preprocessing
        self.cpu_threads = cpu_threads
        """Threads of one inference; None if it runs on a GPU."""

    def __repr__(self) -> str:
        where = "a GPU" if self.cpu_threads is None else plural(self.cpu_threads, "thread")
        graph, engine = self.artifact.file, self.backend.name
        return f"<Model {self.bundle.path}: {graph} on {engine}, {where}>"

    @property
    def batch(self) -> int:
        """Return the number of images in one inference of many."""
        return GPU_BATCH if self.cpu_threads is None else CPU_BATCH

    def run(self, images: UInt8Array) -> Float32Array:
        """Return the logits, float32 (N, K), of prepared images, uint8 RGB (N, H, W, 3).

        Raises:
            ValueError: The dtype or the shape is not that of the model's input.
            BackendError: The engine failed.
        """
        height, width = self.preprocessing.size
        if images.dtype != np.uint8 or images.shape[1:] != (height, width, 3) or not len(images):
            raise ValueError(
                f"images are {images.dtype} {images.shape}; the model takes uint8 "
                f"(N, {height}, {width}, 3) with N at least 1"
            )
        return self.backend.run(np.ascontiguousarray(images))

    def preprocess(self, image: Picture) -> UInt8Array:
        """Return the network's input for one picture, uint8 RGB (H, W, 3), with `predict`'s errors.

        The graph itself normalises the pixels and arranges the channels.
        """
        return load_picture(image, self.preprocessing)

    def predict(self, image: Picture, top: int = 5) -> list[Prediction]:
        """Return the `top` most likely classes of one picture, the most likely first.

        A picture is a path, the content of a file (bytes), an image of Pillow in any mode, or an
        array of uint8: (H, W), (H, W, 3) in the order RGB, or (H, W, 4) with alpha. Its EXIF
        orientation is applied, and transparent pixels become white.

        Raises:
            ImageError: The picture cannot be decoded.
            TypeError, ValueError: It is no picture, or `top` is less than 1.
            BackendError: The engine failed.
        """
        return self.classify(self.preprocess(image)[np.newaxis], top)[0]

    def predict_batch(self, images: Iterable[Picture], top: int = 5) -> list[list[Prediction]]:
        """Return the predictions of several pictures: a list, a generator or an array of 4 axes.

        An inference takes `batch` pictures at once. In a float graph, the last bits of its sums may
        depend on the number of pictures in it.

        Raises:
            ImageError, TypeError, ValueError: As in `predict`; the message begins with the index.
            BackendError: The engine failed.
        """
        if isinstance(images, np.ndarray) and images.ndim != 4:
            raise ValueError(
                f"an array of several pictures has 4 axes, (N, height, width, 3), not {images.ndim}"
            )
        if isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike, Mapping)) or (
            not isinstance(images, Iterable)
        ):
            raise TypeError(
                f"predict_batch takes a list of pictures, not a {type(images).__name__}; "
                "predict takes one picture"
            )
        pixels = (self._numbered(index, image) for index, image in enumerate(images))
        answers: list[list[Prediction]] = []
        while batch := list(islice(pixels, self.batch)):
            answers += self.classify(np.stack(batch), top)
        return answers

    def classify(self, pixels: UInt8Array, top: int = 5) -> list[list[Prediction]]:
        """Return the `top` most likely classes of each prepared image, uint8 RGB (N, H, W, 3)."""
        _require_number("top", top)
        return [top_predictions(logits, self.labels, top) for logits in self.run(pixels)]

    def _numbered(self, index: int, image: Picture) -> UInt8Array:
        try:
            return self.preprocess(image)
        except ImageError as error:
            raise ImageError(f"picture {index}: {error}", error.hint) from error
        except TypeError as error:
            raise TypeError(f"picture {index}: {error}") from error
        except ValueError as error:
            raise ValueError(f"picture {index}: {error}") from error

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


def _require_number(name: str, value: object) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a number from 1")


def load(
    path: str | os.PathLike[str],
    backend: str = AUTO,
    precision: str = AUTO,
    threads: int | None = None,
    progress: Progress = silent,
    *,
    exact: bool = False,
) -> Model:
    """Open a bundle with the graph that is usually the fastest, of those that verify here.

    `auto` measures nothing here. It takes the first graph and backend that pass the golden check,
    in the usual order of their speeds, or in that which `resdeploy serve` or `doctor` measured
    here before. The `repr` of the model names both.

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
    if threads is not None:
        _require_number("threads", threads)
    bundle = open_bundle(Path(path))
    options = OpenOptions(threads=threads, progress=progress, exact=exact)
    for candidate, opened in verified_backends(bundle, backend, precision, options):
        cpu_threads = (threads or available_cores()) if candidate.engine.on_cpu else None
        return Model(bundle, candidate.artifact, opened, cpu_threads)
    raise BackendError(
        f"no backend reproduces PyTorch's logits for {path} on this machine",
        "run resdeploy verify for the figures and resdeploy doctor for the cause",
    )
