"""Classification of any number of files, which are decoded in threads beside the inference."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from resdeploy.errors import ResdeployError
from resdeploy.images.decode import MAX_MEMORY, DecodingLimits
from resdeploy.images.loading import load_image
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.images.skipped import has_single_colour
from resdeploy.machine.device import available_cores
from resdeploy.predictions import Prediction
from resdeploy.progress import Progress, silent
from resdeploy.runtime.model import Model
from resdeploy.runtime.picture_sources import PictureSource, find_pictures

MAX_DECODERS = 8  # threads; each may hold a file of 64 MiB
BATCHES_AHEAD = 2  # that are decoded while one is computed; more would only need memory


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePredictions:
    """The predictions for one file."""

    schema: str = "resdeploy.prediction/1"
    path: Path
    predictions: tuple[Prediction, ...]
    """The most likely classes, the first one first; empty if the file cannot be decoded."""
    backend: str
    artifact: str
    error: str | None = None
    """Reason why the file cannot be decoded, with the remedy."""
    single_colour: bool = False
    """True if all pixels are equal, so that the predictions mean nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionReport:
    """The result of `resdeploy predict` for files."""

    images: int
    """Number of files that were classified."""
    failed: int
    """Number of files and names that could not be classified."""
    skipped: int
    """Number of files in folders that are hidden or no pictures."""
    first_failed: Path | None
    seconds: float
    """Time of decoding and inference, without loading the bundle."""
    images_per_second: float
    backend: str
    artifact: str
    csv: Path | None = None
    jsonl: Path | None = None
    results: tuple[FilePredictions, ...] | None = None
    """All files in their order; None if a file has them, because there may be millions."""
    schema: str = "resdeploy.predictions/1"


def predict_files(
    model: Model,
    names: Sequence[str | Path],
    outputs: Iterable[Callable[[FilePredictions], object]] = (),
    top: int = 5,
    progress: Progress = silent,
) -> PredictionReport:
    """Classify files, folders and patterns as `find_pictures` finds them; give each to `outputs`.

    Files come in order. One that cannot be decoded does not stop the rest. The memory does not
    depend on the number of files, except for the names in one folder.

    Raises:
        BackendError: The engine failed.
    """
    outputs, images, failed, skipped = list(outputs), 0, 0, 0
    first_failed: Path | None = None
    total = 0 if progress is silent else sum(found is not None for found in find_pictures(names))
    start = time.perf_counter()

    def counted() -> Iterator[PictureSource]:
        nonlocal skipped
        for found in find_pictures(names):
            if found is None:
                skipped += 1
            else:
                yield found

    with progress("predict", total) as advance:
        for file in classify_files(model, counted(), top):
            if file.error is None:
                images += 1
            else:
                failed, first_failed = failed + 1, first_failed or file.path
            for output in outputs:
                output(file)
            advance(1)
    seconds = time.perf_counter() - start
    return PredictionReport(
        images=images,
        failed=failed,
        skipped=skipped,
        first_failed=first_failed,
        seconds=seconds,
        images_per_second=images / seconds,
        backend=model.backend.name,
        artifact=model.artifact.name,
    )


def classify_files(
    model: Model, sources: Iterable[PictureSource], top: int = 5
) -> Iterator[FilePredictions]:
    """Yield the predictions for each source, in order, `model.batch` files in an inference."""
    remaining, memory = iter(sources), _SharedMemory()
    waiting: deque[tuple[Path, Future[UInt8Array]]] = deque()
    empty = FilePredictions(
        path=Path(), predictions=(), backend=model.backend.name, artifact=model.artifact.name
    )

    def decode(source: PictureSource) -> UInt8Array:
        if source.error is not None:
            raise source.error
        with memory.limits() as limits:
            return load_image(source.path, model.preprocessing, limits)

    pool = ThreadPoolExecutor(min(available_cores(), MAX_DECODERS), "decoder")
    try:
        while True:
            wanted = (1 + BATCHES_AHEAD) * model.batch - len(waiting)
            for source in islice(remaining, wanted):
                waiting.append((source.path, pool.submit(decode, source)))
            batch = [waiting.popleft() for _ in range(min(model.batch, len(waiting)))]
            if not batch:
                return
            files = [_decoded(replace(empty, path=path), future) for path, future in batch]
            pixels = [pixels for _, pixels in files if pixels is not None]
            answers = iter(model.classify(np.stack(pixels), top) if pixels else ())
            for file, found in files:
                yield file if found is None else replace(file, predictions=tuple(next(answers)))
    finally:
        pool.shutdown(cancel_futures=True)


def _decoded(
    file: FilePredictions, future: Future[UInt8Array]
) -> tuple[FilePredictions, UInt8Array | None]:
    try:
        pixels = future.result()
    except ResdeployError as error:
        reason = "; ".join(filter(None, (str(error), error.hint)))
        return replace(file, error=reason), None
    return replace(file, single_colour=has_single_colour(pixels)), pixels


@dataclass(slots=True)
class _SharedMemory:
    """The memory that decoders may use together: that of one largest picture."""

    free: int = MAX_MEMORY
    changed: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def limits(self) -> Iterator[DecodingLimits]:
        """Yield limits that wait for memory, which is free again after the `with` block."""
        taken = 0

        def admit(pixels: int, memory: int) -> None:
            nonlocal taken
            with self.changed:
                self.changed.wait_for(lambda: memory <= self.free)
                self.free -= memory
            taken = memory

        try:
            yield DecodingLimits(admit=admit)
        finally:
            with self.changed:
                self.free += taken
                self.changed.notify_all()
