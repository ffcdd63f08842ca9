"""The function from rows to predictions that every engine runs: `Scorer`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resdeploy.bundle.golden import Float32Array
from resdeploy.errors import DataError
from resdeploy.predictions import softmax
from resdeploy.readable_text import readable
from resdeploy.runtime.model import Model, load
from resdeploy.runtime.picture_inference import ReadPicture, infer_pictures
from resdeploy.runtime.scoring.rows import ContentRow, PictureRow, Row

REMOTE_READERS = 16  # threads that wait for a store; of local files, as many as cores


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerOptions:
    """Predictions to compute, and the engine that computes them."""

    top: int = 5
    """Number of most likely classes."""
    logits: bool = False
    """True to keep all logits, too."""
    batch: int | None = None
    """Number of pictures in an inference; None for the engine's own."""
    backend: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    """Threads of one inference on a CPU; None for one per core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Predictions for N rows, of which M were classified."""

    paths: tuple[str, ...]
    labels: tuple[str | None, ...]
    """Names of the true classes."""
    errors: tuple[str | None, ...]
    """Reasons why rows have no prediction."""
    indices: np.ndarray
    """Most likely classes of the classified rows, int32 (M, top), the first one first."""
    probabilities: Float32Array
    """Shape (M, top)."""
    logits: Float32Array | None
    """Shape (M, K)."""
    engine: str
    """Graph and backend, such as `int8-cpu on openvino`."""

    def confusion(self, outputs: Mapping[str, int]) -> tuple[tuple[int, int, int], ...]:
        """Return true class, predicted class and number of rows, of those with a true class."""
        if not outputs:
            return ()
        known = (label for label, error in zip(self.labels, self.errors) if error is None)
        pairs = ((outputs[label], int(row[0])) for label, row in zip(known, self.indices) if label)
        return tuple((*pair, count) for pair, count in sorted(Counter(pairs).items()))


class Scorer:
    """Function from columns with pictures to columns with predictions.

    It can be pickled, and loads the bundle at its first call, so that Ray, Daft, Spark or a process
    pool can send it to their workers and map it over batches.

    Example: `Scorer("r34.bundle", top=3)({"path": ["a.jpg", "b.jpg"]})["label"]`.
    """

    def __init__(
        self, bundle: str | Path, options: ScorerOptions | None = None, **settings: Any
    ) -> None:
        """Name the bundle and the fields of `ScorerOptions`.

        Args:
            bundle: The folder of the bundle, which each worker must be able to read.
            options: The options; None to give them as `settings`.
            **settings: Fields of `ScorerOptions`, such as `top`, `threads` and `backend`.
        """
        self.bundle = Path(bundle)
        self.options = ScorerOptions(**settings) if options is None else options
        self._model: Model | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"bundle": self.bundle, "options": self.options, "_model": None}

    @property
    def model(self) -> Model:
        """The model, which is loaded when it is first used.

        Raises:
            BackendError, BundleError: As `load`.
        """
        if self._model is None:
            settings = self.options
            self._model = load(self.bundle, settings.backend, settings.precision, settings.threads)
        return self._model

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Return the columns of a batch with those of the predictions.

        Args:
            batch: Columns of N values: `bytes` with the contents of pictures, or `path` with paths
                and URLs. Others are passed on.

        Returns:
            The columns of `batch` except `bytes`, and `label`, `index`, `probability` (lists of the
            most likely classes), `logits` if asked for, `error` (None, or a reason), `engine`.

        Raises:
            BackendError, BundleError: The bundle cannot be loaded, or the engine failed.
            KeyError: There is neither column.
        """
        names = list(batch["path"]) if "path" in batch else None
        contents = list(batch["bytes"]) if "bytes" in batch else None
        rows: list[Row]
        if contents is not None:
            labelled = names or [f"row {number}" for number in range(len(contents))]
            rows = [
                ContentRow(path=str(name), label=None, content=content)
                for name, content in zip(labelled, contents)
            ]
        elif names is not None:
            rows = [PictureRow(path=str(name), place=str(name)) for name in names]
        else:
            raise KeyError(f"the batch has no column bytes or path, only {', '.join(batch)}")
        scores = self.score(rows, remote=any(row.is_remote for row in rows))
        passed_on = {name: list(column) for name, column in batch.items() if name != "bytes"}
        columns = prediction_columns(scores, self.model.labels)
        if logits := columns.get("logits"):
            columns["logits"] = [None if row is None else row.tolist() for row in logits]
        return {**passed_on, **columns}

    def score(self, rows: Iterable[Row], *, remote: bool = False, stops: bool = False) -> Scores:
        """Return the predictions for rows, which are read and decoded while the engine computes.

        Args:
            rows: The rows, which are advanced as they are read.
            remote: True if pictures come from a store, for which more threads wait.
            stops: True to raise an error at the first row that cannot be scored.

        Raises:
            BackendError, BundleError: As for a call.
            DataError: A row cannot be scored, and `stops` is set.
        """
        model, top = self.model, min(self.options.top, len(self.model.labels))
        paths, labels = list[str](), list[str | None]()

        def pictures() -> Iterator[ReadPicture]:
            for row in rows:
                paths.append(row.path)
                labels.append(row.label)
                yield row.read

        errors, logits = list[str | None](), list[Float32Array]()
        readers = REMOTE_READERS if remote else None
        batch = self.options.batch
        for result in infer_pictures(model, pictures(), readers=readers, batch=batch):
            if stops and result.error is not None:
                raise DataError(
                    f"stopped at the first picture that cannot be scored: {readable(result.error)}",
                    "go on with --resume --on-error record, which writes the reason in its row; or "
                    "mend it, and score into another folder",
                )
            errors.append(None if result.error is None else readable(result.error))
            if result.logits is not None:
                logits.append(result.logits)
        found = np.stack(logits) if logits else np.empty((0, len(model.labels)), np.float32)
        indices = np.argsort(-found, axis=1, kind="stable")[:, :top]
        chosen = np.take_along_axis(softmax(found), indices, axis=1)
        return Scores(
            paths=tuple(paths), labels=tuple(labels), errors=tuple(errors),
            indices=indices.astype(np.int32), probabilities=chosen.astype(np.float32),
            logits=found if self.options.logits else None,
            engine=f"{model.artifact.name} on {model.backend.name}",
        )  # fmt: skip


def prediction_columns(scores: Scores, labels: Sequence[str]) -> dict[str, list[Any]]:
    """Return the predictions as columns of one value or list per row; None without a prediction."""
    classified = iter(range(len(scores.indices)))
    places = [None if error is not None else next(classified) for error in scores.errors]
    indices, probabilities = scores.indices.tolist(), scores.probabilities.tolist()
    # Arrays, because lists of Python's numbers would be eight times as large.
    logits = None if scores.logits is None else list(scores.logits)

    def column(values: list[Any]) -> list[Any]:
        return [None if place is None else values[place] for place in places]

    return {
        "label": column([[labels[index] for index in row] for row in indices]),
        "index": column(indices),
        "probability": column(probabilities),
        **({} if logits is None else {"logits": column(logits)}),
        "error": list(scores.errors),
        "engine": [scores.engine] * len(places),
    }
