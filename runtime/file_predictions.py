"""Classification of any number of files: the predictions for each, and their counts."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from resdeploy.predictions import Prediction, top_predictions
from resdeploy.progress import Progress, silent
from resdeploy.runtime.model import Model
from resdeploy.runtime.picture_inference import ReadPicture, infer_pictures
from resdeploy.runtime.picture_sources import PictureSource, find_pictures


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
    paths: deque[Path] = deque()
    empty = FilePredictions(
        path=Path(), predictions=(), backend=model.backend.name, artifact=model.artifact.name
    )

    def pictures() -> Iterator[ReadPicture]:
        for source in sources:
            paths.append(source.path)
            yield partial(_path_of, source)

    for result in infer_pictures(model, pictures()):
        file = replace(empty, path=paths.popleft(), error=result.error)
        if result.logits is None:
            yield file
        else:
            found = tuple(top_predictions(result.logits, model.labels, top))
            yield replace(file, predictions=found, single_colour=result.single_colour)


def _path_of(source: PictureSource) -> Path:
    if source.error is not None:
        raise source.error
    return source.path
