"""Scoring of sources of any size with a bundle: `resdeploy score`."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from resdeploy.bundle.bundle import open_bundle
from resdeploy.bundle.quality import relevant_warnings
from resdeploy.errors import DataError, Interrupted, OutputError, Terminated, needs_extra
from resdeploy.file_locks import release_lock, take_lock
from resdeploy.images.formats import warn_passed_over
from resdeploy.progress import Progress, silent
from resdeploy.result_files.provenance import Environment, shown_path
from resdeploy.result_files.scoring import ScoringReport
from resdeploy.runtime.scoring.engines import (
    PartWriter,
    RayOptions,
    import_ray,
    score_locally,
    score_with_ray,
)
from resdeploy.runtime.scoring.job import (
    EngineChoice,
    ScoringJob,
    begin,
    complete_parts,
    read_job,
    refuse_other_job,
)
from resdeploy.runtime.scoring.labels import label_outputs, scoring_accuracy
from resdeploy.runtime.scoring.result_files import TableFormat
from resdeploy.runtime.scoring.scorer import Scorer, ScorerOptions
from resdeploy.runtime.scoring.sources import Part, SourceSummary, list_parts
from resdeploy.runtime.scoring.storage import OutputFolder
from resdeploy.runtime.scoring.table_source import ColumnNames

logger = logging.getLogger(__name__)

SHARD = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringOptions:
    """Options of a scoring: columns of the sources, engine, form of the result."""

    scorer: ScorerOptions = field(default_factory=ScorerOptions)
    columns: ColumnNames = field(default_factory=ColumnNames)
    format: TableFormat = TableFormat.PARQUET
    shard: int = SHARD
    """Largest number of rows of a file."""
    stop_on_error: bool = False
    """True to stop at the first row that cannot be scored; False to record it."""
    resume: bool = False
    ray: RayOptions | None = None
    """The cluster; None to score in this process."""


def score_sources(
    bundle: Path,
    sources: Sequence[str],
    output: str,
    options: ScoringOptions | None = None,
    progress: Progress = silent,
) -> ScoringReport:
    """Score all rows of `sources` with a bundle, and write tables to the folder `output`.

    The memory does not depend on the number of rows, see `list_parts`; a list of all names is sent
    to a cluster.

    Raises:
        BackendError, BundleError: The bundle cannot be used.
        DataError: A source cannot be read, or has changed meanwhile.
        MissingDependencyError: PyArrow, Ray or the package of a store is not installed.
        OutputError: The result cannot be written, or cannot be resumed.
    """
    options = options or ScoringOptions()
    _check_packages(options)
    opened, folder, start = open_bundle(bundle), OutputFolder(output), time.perf_counter()
    listed = SourceSummary()
    with progress("list", 0) as advance:
        for part in list_parts(sources, options.columns, options.shard, listed):
            advance(part.count)
    for source, passed_over in listed.passed_over.items():
        warn_passed_over(source, passed_over)
    labels = opened.labels()
    outputs = label_outputs(listed, labels, required=options.columns.label is not None)
    asked = options.scorer
    with _locked(folder):
        found = read_job(folder, resume=options.resume)
        began, scorer = time.perf_counter(), Scorer(bundle, asked)
        engine = found.engine if found else _choose_engine(scorer, options)
        job = ScoringJob(
            bundle_sha256=opened.digest, source_sha256=listed.digest, rows=listed.rows,
            parts=listed.parts, shard=options.shard, format=options.format.value, top=asked.top,
            logits=asked.logits, batch=asked.batch, backend=asked.backend,
            precision=asked.precision, label_column=options.columns.label, engine=engine,
        )  # fmt: skip
        if found is None:
            begin(folder, job)
        else:
            refuse_other_job(folder, found, job)
        records = complete_parts(folder)
        resumed = len(records)
        scorer.options = replace(asked, backend=engine.backend, precision=engine.precision)
        write = PartWriter(
            scorer=scorer, output=output, format=options.format,
            bundle_sha256=opened.digest, outputs=dict(outputs), stops=options.stop_on_error,
        )  # fmt: skip
        again = SourceSummary()
        done = sum(record.rows for record in records.values())

        def remaining() -> Iterator[Part]:
            for part in list_parts(sources, options.columns, options.shard, again):
                if part.number not in records:
                    yield part

        # Without the rows of earlier runs, with which the rate would be too high.
        with progress("score", listed.rows - done) as advance, _resumable():
            scored = (
                score_locally(write, remaining(), advance)
                if options.ray is None
                else score_with_ray(write, remaining(), advance, options.ray)
            )
            for record in scored:
                records[record.number] = record
        seconds = time.perf_counter() - began
        if again.digest != listed.digest:
            raise DataError(
                "the sources have changed while they were scored",
                "score again into another folder, when nothing writes them any more",
            )
        sizes = folder.sizes()
        if missing := [r.file for r in records.values() if sizes.get(r.file) != r.bytes]:
            raise OutputError(
                f"{missing[0]}, which a worker wrote, is not in {output} here",
                "give a folder that all machines of the cluster share, or the URL of a store",
            )
    ordered = [records[number] for number in sorted(records)]
    accuracy = scoring_accuracy(cell for record in ordered for cell in record.confusion)
    engines = Counter[str]()
    for record in ordered:
        engines[record.engine] += record.rows - record.failed
    manifest = opened.manifest
    graphs = {engine.partition(" on ")[0] for engine in engines}
    return ScoringReport(
        output=output,
        rows=listed.rows,
        failed=sum(record.failed for record in ordered),
        first_failed=next((r.first_failed for r in ordered if r.first_failed), None),
        skipped=listed.skipped,
        parts=len(ordered),
        resumed_parts=resumed,
        seconds=time.perf_counter() - start,
        rows_per_second=(listed.rows - done) / seconds if resumed < len(ordered) else None,
        engines=dict(engines),
        bundle_sha256=opened.digest,
        labels=tuple(labels) if accuracy else (),
        accuracy=accuracy,
        warnings=relevant_warnings(manifest, graphs),
        environment=Environment.collect(
            model=manifest.model.get("name"),
            image_size=manifest.preprocessing.image_size,
            bundle=shown_path(bundle),
        ),
    )


def _check_packages(options: ScoringOptions) -> None:
    """Raise a MissingDependencyError before long work if a package is missing at its end."""
    if options.format is TableFormat.PARQUET:
        with needs_extra():
            import pyarrow.parquet  # noqa: F401
    if options.ray is not None:
        import_ray()


@contextmanager
def _resumable() -> Iterator[None]:
    """Say at an interrupt that complete files are kept."""
    try:
        yield
    except KeyboardInterrupt as stop:
        code = stop.code if isinstance(stop, Terminated) else 1
        ended = "terminated" if code > 1 else "interrupted"
        message = f"{ended}: complete files are kept; the same command with --resume goes on"
        logger.warning("%s", message)
        raise Interrupted(message, code) from stop


def _choose_engine(scorer: Scorer, options: ScoringOptions) -> EngineChoice:
    """Return the fastest engine that passes the golden check here; with GPUs, as asked for.

    Only the actors of a cluster have its GPUs.
    """
    if options.ray is not None and options.ray.worker_gpus:
        return EngineChoice(backend=options.scorer.backend, precision=options.scorer.precision)
    model = scorer.model
    return EngineChoice(backend=model.backend.name, precision=model.artifact.precision.value)


@contextmanager
def _locked(folder: OutputFolder) -> Iterator[None]:
    """Hold the lock of a local folder: two runs would write the same parts.

    Raises:
        OutputError: Another run holds it, or the folder cannot be created.
    """
    lock = -1
    if folder.local is not None:
        try:
            folder.local.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{folder.name} cannot be created: {error.strerror}", "check the path"
            ) from error
        try:
            lock = take_lock(folder.local)
        except BlockingIOError as error:
            raise OutputError(
                f"another run scores into {folder.name}", "wait until it ends, or choose another"
            ) from error
        except OSError:
            pass  # the file system has no locks
    try:
        yield
    finally:
        release_lock(lock)
