"""Classification of any number of files, which are decoded in threads beside the inference."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from resdeploy.errors import ResdeployError
from resdeploy.images.decode import DecodingLimits
from resdeploy.images.loading import load_image
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.images.skipped import has_single_colour
from resdeploy.machine.device import available_cores
from resdeploy.predictions import Prediction
from resdeploy.progress import Progress, silent
from resdeploy.runtime.model import Model
from resdeploy.runtime.picture_sources import PictureSource, find_pictures

MAX_DECODERS = 8  # threads; each may hold a file of 64 MiB
ORDINARY_MEMORY = 128 << 20  # bytes, of 32 megapixels; pictures that need more come one by one
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
    outputs: Collection[Callable[[FilePredictions], object]] = (),
    top: int = 5,
    progress: Progress = silent,
) -> PredictionReport:
    """Classify files, folders and patterns as `find_pictures` finds them; give each to `outputs`.

    Files come in order. One that cannot be decoded does not stop the rest. The memory does not
    depend on the number of files, except for the names in one folder and the matches of a pattern.

    Raises:
        BackendError: The engine failed.
    """
    counts, first_failed = Counter[str](), None
    total = 0 if progress is silent else sum(found is not None for found in find_pictures(names))
    start = time.perf_counter()

    def sources() -> Iterator[PictureSource]:
        for found in find_pictures(names):
            if found is not None:
                yield found
            counts["skipped"] += found is None

    with progress("predict", total) as advance:
        for file in classify_files(model, sources(), top):
            counts["images" if file.error is None else "failed"] += 1
            if file.error is not None:
                first_failed = first_failed or file.path
            for output in outputs:
                output(file)
            advance(1)
    seconds = time.perf_counter() - start
    return PredictionReport(
        images=counts["images"], failed=counts["failed"], skipped=counts["skipped"],
        first_failed=first_failed, seconds=seconds, images_per_second=counts["images"] / seconds,
        backend=model.backend.name, artifact=model.artifact.name,
    )  # fmt: skip


def classify_files(
    model: Model, sources: Iterable[PictureSource], top: int = 5
) -> Iterator[FilePredictions]:
    """Yield the predictions for each source, in order, `model.batch` files in an inference."""
    remaining, large = iter(sources), threading.Lock()
    waiting: deque[tuple[Path, Future[UInt8Array]]] = deque()
    empty = FilePredictions(
        path=Path(), predictions=(), backend=model.backend.name, artifact=model.artifact.name
    )

    def decode(source: PictureSource) -> UInt8Array:
        if source.error is not None:
            raise source.error
        with ExitStack() as held:

            def admit(pixels: int, memory: int) -> None:
                if memory > ORDINARY_MEMORY:
                    held.enter_context(large)

            return load_image(source.path, model.preprocessing, DecodingLimits(admit=admit))

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
