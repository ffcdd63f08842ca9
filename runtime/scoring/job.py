"""The record of a scoring in its output folder, with which it is resumed: each row exactly once.

A part is written under its name when it is complete, and then its record in the journal. So after
a kill at any moment, a part without a record is scored again and replaced, and none is lost.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from resdeploy.errors import OutputError
from resdeploy.json_documents import decode, to_text
from resdeploy.runtime.scoring.storage import OutputFolder

JOB = "_job.json"  # readers of Parquet folders ignore names that begin with an underscore
JOURNAL = "_journal"
MAX_RECORD_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """The engine of all parts: chosen once, because another one could give other predictions."""

    backend: str
    precision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringJob:
    """Facts that must be the same when a scoring is resumed: bundle, sources and options."""

    bundle_sha256: str
    """SHA-256 of the manifest, which has those of all files of the bundle."""
    source_sha256: str
    """SHA-256 of the names and stamps of all rows."""
    rows: int
    shard: int
    """Largest number of rows of a part."""
    parts: int
    format: str
    top: int
    logits: bool
    batch: int | None
    backend: str
    precision: str
    """As the user asked for them, such as `auto`."""
    label_column: str | None
    engine: EngineChoice
    schema: str = "resdeploy.scoring-job/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRecord:
    """A part that is complete."""

    number: int
    file: str
    bytes: int
    sha256: str
    rows: int
    failed: int
    """Number of rows without a prediction."""
    first_failed: str | None
    engine: str
    confusion: tuple[tuple[int, int, int], ...] = ()
    """True class, predicted class and number of rows."""
    schema: str = "resdeploy.scoring-part/1"


_CHANGES = {
    "bundle_sha256": "the bundle has changed",
    "source_sha256": "the sources have changed",
}


def read_job(output: OutputFolder, *, resume: bool) -> ScoringJob | None:
    """Return the job whose result is in a folder; None if the folder is empty.

    Raises:
        OutputError: There is a job and `resume` is not set, or other files; or it is damaged.
    """
    data = output.read(JOB, MAX_RECORD_BYTES)
    if data is None:
        output.tidy_up(JOB)  # a run may have been killed while it wrote it
        if not output.is_empty():
            raise OutputError(
                f"{output.name} has files, but no {JOB} of a scoring", "choose an empty folder"
            )
        return None
    if not resume:
        raise OutputError(
            f"{output.name} has the result of a scoring already",
            "add --resume to complete it, choose another name, or remove the folder",
        )
    try:
        return decode(ScoringJob, data)
    except ValueError as error:
        raise _damaged(output, JOB, error) from error


def begin(output: OutputFolder, job: ScoringJob) -> None:
    """Write the record of a new job.

    Raises:
        OutputError: It cannot be written.
    """
    output.write(JOB, _text(job))


def refuse_other_job(output: OutputFolder, found: ScoringJob, job: ScoringJob) -> None:
    """Raise an OutputError if the job in a folder is not the one that is to be resumed."""
    for field in fields(ScoringJob):
        before, now = getattr(found, field.name), getattr(job, field.name)
        if before != now:
            reason = _CHANGES.get(field.name, f"{_option(field.name)} was {before} and is {now}")
            raise OutputError(
                f"{output.name} cannot be resumed: {reason}",
                "score into another folder, or give what the first run had",
            )


def save_part(output: OutputFolder, record: PartRecord, data: bytes) -> None:
    """Write the file of a part, then its record.

    Raises:
        OutputError: One of them cannot be written.
    """
    output.write(record.file, data)
    output.write(f"{JOURNAL}/{record.number:06}.json", _text(record))


def complete_parts(output: OutputFolder) -> dict[int, PartRecord]:
    """Return the parts that have a record and a file of the recorded size, by number.

    Raises:
        OutputError: The folder cannot be read, or a record is damaged.
    """
    sizes, complete = output.sizes(), dict[int, PartRecord]()
    for name in sorted(output.sizes(JOURNAL)):
        if not re.fullmatch(r"\d{6,}\.json", name):
            continue
        data = output.read(f"{JOURNAL}/{name}", MAX_RECORD_BYTES) or b""
        try:
            record = decode(PartRecord, data)
        except ValueError as error:
            raise _damaged(output, f"{JOURNAL}/{name}", error) from error
        if sizes.get(record.file) == record.bytes:
            complete[record.number] = record
    return complete


def _option(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _text(document: ScoringJob | PartRecord) -> bytes:
    return f"{to_text(document)}\n".encode()


def _damaged(output: OutputFolder, file: str, error: ValueError) -> OutputError:
    return OutputError(
        f"{output.name}/{file} is damaged: {error}", "remove the folder, and score again"
    )
