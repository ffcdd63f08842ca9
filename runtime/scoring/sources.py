"""The rows of the sources that a user names: folders, pictures, tar files and tables.

A row refers to a picture; the picture itself is read when it is scored. Rows that follow each other
form parts, and each part becomes one file of the result.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from resdeploy.errors import DataError, one_line_reason, remedy_for
from resdeploy.images.folder import no_images, walk_pictures
from resdeploy.images.formats import SUFFIXES, PictureFilter
from resdeploy.readable_text import readable
from resdeploy.runtime.scoring.rows import PictureRow
from resdeploy.runtime.scoring.storage import (
    absolute_name,
    is_stored_folder,
    is_url,
    local_path,
    local_stamp,
    open_file,
    stamp_of,
    walk_store,
)
from resdeploy.runtime.scoring.table_source import (
    TABLE_SUFFIXES,
    ColumnNames,
    TableSlice,
    table_rows,
)
from resdeploy.tar_members import TAR_HINT, tar_samples

TAR = ".tar"
MAX_LABELS = 1_000_000  # different names of classes


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rows that become one file of the result."""

    number: int
    rows: tuple[PictureRow, ...] = ()
    slice: TableSlice | None = None
    """Rows of a table that holds the pictures themselves, in place of `rows`."""

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.rows) if self.slice is None else self.slice.count

    @property
    def is_remote(self) -> bool:
        """True if pictures come from a store, so that reading them means waiting."""
        return any(row.is_remote for row in self.rows)

    def absolute(self) -> Part:
        """Return the part with absolute paths, which mean the same in another folder."""
        rows = tuple(
            replace(row, place=absolute_name(row.place)) if row.place else row for row in self.rows
        )
        table = self.slice and replace(self.slice, place=absolute_name(self.slice.place))
        return replace(self, rows=rows, slice=table)


@dataclass(slots=True, kw_only=True)
class SourceSummary:
    """Counts and classes of all rows, after they were listed once."""

    rows: int = 0
    parts: int = 0
    skipped: int = 0
    """Number of files in folders that are hidden or no pictures."""
    labels: set[str] = field(default_factory=set)
    """Names of the true classes."""
    passed_over: dict[str, Counter[str]] = field(default_factory=dict)
    """Number of pictures and archives that are not read, by source and ending."""
    digest: str = ""
    """SHA-256 of the names, places, classes and stamps of all rows."""


def list_parts(
    sources: Sequence[str], columns: ColumnNames, size: int, summary: SourceSummary
) -> Iterator[Part]:
    """Yield the parts of `size` rows, or fewer at the end of a table's group, and fill `summary`.

    The memory does not depend on the number of rows, except for the names in one folder and the
    members of one tar file.

    Raises:
        DataError: A source cannot be read.
    """
    digest, rows = hashlib.sha256(), list[PictureRow]()

    def part(slice: TableSlice | None = None) -> Iterator[Part]:
        if rows or slice:
            found = Part(number=summary.parts, rows=tuple(rows), slice=slice)
            summary.parts += 1
            summary.rows += found.count
            rows.clear()
            yield found

    for source in sources:
        for item in _rows(source, columns, size, summary):
            if item is None:
                summary.skipped += 1
                continue
            digest.update(f"{item.identity}\0".encode(errors="surrogateescape"))
            if isinstance(item, TableSlice):
                yield from part()
                summary.labels |= item.labels
                yield from part(item)
                continue
            if item.label is not None:
                summary.labels.add(item.label)
            rows.append(item)
            if len(rows) == size:
                yield from part()
            if len(summary.labels) > MAX_LABELS:
                reason = f"the sources have more than {MAX_LABELS:,} different classes"
                raise DataError(reason, "name another column with --label-column")
    yield from part()
    if not summary.rows:
        raise DataError("the tables have no rows", "name tables with rows, or folders")
    summary.digest = digest.hexdigest()


def _rows(
    source: str, columns: ColumnNames, size: int, summary: SourceSummary
) -> Iterator[PictureRow | TableSlice | None]:
    """Yield the rows of one source; None in place of each skipped file."""
    suffix = os.path.splitext(source)[1].lower()
    remote = is_url(source)
    if not source:
        raise DataError("the name of a source is empty", "name a folder, a file or a URL")
    if suffix == TAR:
        yield from _tar_rows(source, summary)
    elif suffix in TABLE_SUFFIXES:
        yield from table_rows(source, stamp_of(source), columns, size)
    elif remote and (source.endswith("/") or is_stored_folder(source)):
        yield from _stored_folder(source)
    elif not remote and os.path.isdir(local_path(source)):
        yield from _local_folder(local_path(source), summary)
    else:
        yield PictureRow(path=readable(source), place=source, stamp=stamp_of(source))


def _local_folder(folder: Path, summary: SourceSummary) -> Iterator[PictureRow | None]:
    pictures, is_empty = PictureFilter(), True
    for found in walk_pictures(folder, pictures):
        if isinstance(found, DataError):  # rows would be missing without a word
            raise found
        is_empty = is_empty and found is None
        if found is None:
            yield None
        else:
            label = readable(found.parent.name) if found.parent != folder else None
            name, stamp = str(found), local_stamp(found)
            yield PictureRow(path=readable(name), place=name, label=label, stamp=stamp)
    if is_empty:
        error = no_images(folder, pictures)
        hint = f"{error.hint}; name tar files and tables themselves, such as {folder}/*{TAR}"
        raise DataError(str(error), hint)
    summary.passed_over[str(folder)] = pictures.passed_over


def _stored_folder(url: str) -> Iterator[PictureRow | None]:
    top, is_empty = url.rstrip("/"), True
    for file in walk_store(url):
        if os.path.splitext(file.name)[1].lower() not in SUFFIXES:
            yield None
            continue
        is_empty = False
        parent = os.path.dirname(file.name)
        label = readable(os.path.basename(parent)) if parent != top else None
        yield PictureRow(path=readable(file.name), place=file.name, label=label, stamp=file.stamp)
    if is_empty:
        reason = f"there are no pictures below {url}"
        hint = f"check the URL; pictures end in {', '.join(sorted(SUFFIXES))}, and tar files and "
        raise DataError(reason, f"{hint}tables are named themselves")


def _tar_rows(source: str, summary: SourceSummary) -> Iterator[PictureRow]:
    pictures, stamp, is_empty = PictureFilter(), stamp_of(source), True
    try:
        with open_file(source) as stream:
            for member, number in tar_samples(source, stream, pictures):
                is_empty = False
                folder = os.path.basename(os.path.dirname(member.name))
                label = str(number) if number is not None else readable(folder) or None
                yield PictureRow(
                    path=readable(f"{source}:{member.name}"), place=source, label=label,
                    offset=member.offset, size=member.size, stamp=stamp,
                )  # fmt: skip
    except OSError as error:
        reason = f"{source} cannot be read: {one_line_reason(error)}"
        raise DataError(reason, remedy_for(error, TAR_HINT)) from error
    summary.passed_over[source] = pictures.passed_over
    if is_empty:
        reason = f"{source} holds no pictures"
        raise DataError(reason, f"add pictures that end in {', '.join(sorted(SUFFIXES))}")
