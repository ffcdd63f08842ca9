"""Tables of pictures: CSV and Parquet files with a column of paths, of URLs or of contents.

Source: the documentation of Apache Arrow (https://arrow.apache.org/docs/python), `ParquetFile` and
`csv.open_csv`. A column of contents is binary, or a structure with the field `bytes`, as the image
columns of Hugging Face's data sets.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resdeploy.errors import DataError, needs_extra, one_line_reason
from resdeploy.readable_text import readable
from resdeploy.runtime.scoring.rows import ContentRow, PictureRow
from resdeploy.runtime.scoring.storage import is_local, is_url, open_file

if TYPE_CHECKING:
    import pyarrow as pa

CSV = ".csv"
TABLE_SUFFIXES = (CSV, ".parquet", ".pq")
# Names of the columns that are looked for, the first one first.
PICTURE_COLUMNS = (
    "path", "uri", "url", "file", "filename", "file_name", "image_path", "bytes", "content",
    "image", "img",
)  # fmt: skip
PATH_COLUMNS = ("path", "uri", "url", "file", "filename", "file_name", "image_path", "name", "id")
LABEL_COLUMNS = ("label", "class")
BATCH_ROWS = 64  # of contents that are in memory at a time
NAMES_AT_ONCE = 4096
# Protocols that a table may name; others, such as those of archives in archives, are refused.
PROTOCOLS = ("file", "http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "hf", "memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnNames:
    """Columns that the user names; None for those that are looked for."""

    picture: str | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSlice:
    """Rows of a Parquet file that holds the contents of its pictures."""

    source: str
    """Name in the result."""
    place: str
    """Path or URL of the file."""
    group: int
    """Number of the row group."""
    before: int
    """Number of rows in earlier groups."""
    first: int
    """Number of the first row in the group."""
    count: int
    picture: str
    path: str | None
    label: str | None
    """Names of the columns."""
    labels: frozenset[str]
    """Names of the true classes of these rows."""
    stamp: str

    @property
    def identity(self) -> str:
        """Text that must be the same when a scoring is resumed."""
        place = (self.source, self.group, self.first, self.count)
        return "\0".join(map(str, (*place, self.picture, self.path, self.label, self.stamp)))

    def rows(self) -> Iterator[ContentRow]:
        """Yield the rows with their pictures.

        Raises:
            DataError: The table cannot be read.
        """
        columns = [name for name in (self.picture, self.path, self.label) if name is not None]
        end, position = self.first + self.count, 0
        with _parquet(self.place) as table:
            batches = table.iter_batches(BATCH_ROWS, row_groups=[self.group], columns=columns)
            for batch in batches:
                start, stop = max(self.first - position, 0), min(end - position, len(batch))
                if start < stop:
                    yield from self._content(batch.slice(start, stop - start), position + start)
                position += len(batch)
                if position >= end:
                    return

    def _content(self, batch: pa.RecordBatch, first: int) -> Iterator[ContentRow]:
        pictures = batch.column(self.picture).to_pylist()
        paths = batch.column(self.path).to_pylist() if self.path else [None] * len(batch)
        labels = batch.column(self.label).to_pylist() if self.label else [None] * len(batch)
        for index, (picture, path, label) in enumerate(zip(pictures, paths, labels)):
            inside = picture if isinstance(picture, dict) else {"bytes": picture}
            number = self.before + first + index
            names = (path, inside.get("path"), f"{self.source}#{number}")
            name = next(name for name in names if name not in (None, ""))
            yield ContentRow(
                path=readable(str(name)), label=_label(label), content=inside.get("bytes")
            )


def table_rows(
    source: str, stamp: str, columns: ColumnNames, size: int
) -> Iterator[PictureRow | TableSlice]:
    """Yield the rows of a table of names, or slices of at most `size` rows of one of contents.

    Relative paths are relative to the folder of the table.

    Raises:
        DataError: The table cannot be read, or has no such column.
    """
    if source.lower().endswith(CSV):
        yield from _named_rows(source, stamp, _csv_batches(source, columns))
        return
    with _parquet(source) as table:
        found = _columns(source, columns, table.schema_arrow)
        kind = table.schema_arrow.field(found.picture).type
        if (holds_content := _holds_content(kind)) is None:
            raise DataError(
                f"the column of pictures in {source} has the type {kind}",
                "name a column of texts or of binary contents with --column",
            )
        if not holds_content:
            batches = table.iter_batches(
                NAMES_AT_ONCE, columns=[name for name in (found.picture, found.label) if name]
            )
            yield from _named_rows(source, stamp, ((found, batch) for batch in batches))
            return
        names = {name.lower(): name for name in table.schema_arrow.names}
        path = next((names[n] for n in PATH_COLUMNS if n in names), None)
        before = 0
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            labels = _group_labels(table, group, found.label)
            for first in range(0, rows, size):
                yield TableSlice(
                    source=source, place=source, group=group, before=before, first=first,
                    count=min(size, rows - first), picture=found.picture,
                    path=None if path == found.picture else path, label=found.label,
                    labels=labels, stamp=stamp,
                )  # fmt: skip
            before += rows


@dataclass(frozen=True, slots=True)
class _Columns:
    picture: str
    label: str | None


def _named_rows(
    source: str, stamp: str, batches: Iterator[tuple[_Columns, pa.RecordBatch]]
) -> Iterator[PictureRow]:
    folder, row = os.path.dirname(source), 0
    for columns, batch in batches:
        names = batch.column(columns.picture).to_pylist()
        labels = batch.column(columns.label).to_pylist() if columns.label else [None] * len(names)
        for name, label in zip(names, labels):
            row += 1
            place = str(name or "")
            if not place:  # an error of this row
                yield PictureRow(
                    path=readable(f"{source}#{row - 1}"), place="", label=_label(label), stamp=stamp
                )
                continue
            if is_url(place):
                _check_protocol(source, row, place)
            elif not is_local(place) and not os.path.isabs(place):
                place = f"{folder}/{place}" if folder else place
            yield PictureRow(
                path=readable(str(name)), place=place, label=_label(label), stamp=stamp
            )


def _check_protocol(source: str, row: int, url: str) -> None:
    protocol = url.partition("://")[0].lower()
    if protocol not in PROTOCOLS or "::" in url:
        raise DataError(
            f"row {row} of {source} has an address of the kind {readable(protocol)!r}",
            f"use addresses of {', '.join(PROTOCOLS[:-1])}",
        )


def _label(value: Any) -> str | None:
    return None if value is None or value == "" else readable(str(value))


def _csv_batches(source: str, columns: ColumnNames) -> Iterator[tuple[_Columns, pa.RecordBatch]]:
    with needs_extra():
        import pyarrow as pa
        from pyarrow import csv
    try:
        with open_file(source) as stream:
            first = stream.readline(1 << 20)
        head = csv.read_csv(pa.BufferReader(first)).schema
        found = _columns(source, columns, head)
        wanted = [name for name in (found.picture, found.label) if name]
        convert = csv.ConvertOptions(
            include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string())
        )
        parse = csv.ParseOptions(newlines_in_values=True)
        with (
            open_file(source) as stream,
            csv.open_csv(stream, parse_options=parse, convert_options=convert) as reader,
        ):
            for batch in reader:
                yield found, batch
    except (OSError, UnicodeError, pa.ArrowException) as error:
        reason = f"{source} cannot be read as CSV: {one_line_reason(error)}"
        raise DataError(reason, "write a UTF-8 file with a line of column names") from error


@contextmanager
def _parquet(source: str) -> Iterator[Any]:
    with needs_extra():
        import pyarrow as pa
        from pyarrow import parquet
    try:
        with open_file(source) as stream, parquet.ParquetFile(stream) as table:
            yield table
    except (OSError, UnicodeError, pa.ArrowException) as error:
        reason = f"{source} cannot be read as Parquet: {one_line_reason(error)}"
        raise DataError(reason, "copy the file again, or write it again") from error


def _columns(source: str, columns: ColumnNames, schema: pa.Schema) -> _Columns:
    """Return the columns of a table that are named, or found by their usual names.

    Contents come before names, which may be of files that are somewhere else.
    """
    contents = {field.name.lower() for field in schema if _holds_content(field.type)}
    usual = sorted(PICTURE_COLUMNS, key=lambda name: name not in contents)
    picture = _column(source, columns.picture, usual, schema, "--column")
    if picture is None:
        raise DataError(
            f"{source} has no column with a usual name of pictures, such as path, url or image; "
            f"its columns are {_listed(schema.names)}",
            "name the column of paths, URLs or contents with --column",
        )
    label = _column(source, columns.label, LABEL_COLUMNS, schema, "--label-column")
    return _Columns(picture, label)


def _column(
    source: str, named: str | None, usual: Sequence[str], schema: pa.Schema, option: str
) -> str | None:
    if named is not None:
        if schema.names.count(named) != 1:
            raise DataError(
                f"{source} has no column {named!r}; its columns are {_listed(schema.names)}",
                f"name one of them with {option}",
            )
        return named
    names = {name.lower(): name for name in schema.names if schema.names.count(name) == 1}
    return next((names[name] for name in usual if name in names), None)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(readable, names[:20])) + (", ..." if len(names) > 20 else "")


def _holds_content(kind: pa.DataType) -> bool | None:
    """Return True for a type of contents, False for one of texts, None for another one."""
    from pyarrow import types

    if types.is_struct(kind):
        kind = next((field.type for field in kind if field.name == "bytes"), kind)
    if types.is_dictionary(kind):
        kind = kind.value_type
    if any(test(kind) for test in (types.is_binary, types.is_large_binary)):
        return True
    if any(test(kind) for test in (types.is_string, types.is_large_string)):
        return False
    return None


def _group_labels(table: Any, group: int, column: str | None) -> frozenset[str]:
    if column is None:
        return frozenset()
    values = table.read_row_group(group, columns=[column]).column(0).unique().to_pylist()
    return frozenset(name for name in map(_label, values) if name is not None)
