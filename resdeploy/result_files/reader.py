"""The reader of result files, named `FILE`, or `FILE@DATE` for some of its results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from resdeploy.errors import DocumentError
from resdeploy.json_documents import HINT, parse, read_json
from resdeploy.result_files.provenance import Environment


class ResultDocument(Protocol):
    """A dataclass of a result with its provenance."""

    @property
    def environment(self) -> Environment: ...


DocumentType = TypeVar("DocumentType", bound=ResultDocument)


def read_results(name: str, types: Mapping[str, type[DocumentType]]) -> tuple[DocumentType, ...]:
    """Read the results of a file, which holds one result or a list.

    Args:
        name: The file; after an `@`, the date of the wanted results or the beginning of the date.
        types: The accepted dataclasses by schema.

    Raises:
        DocumentError: The file is damaged, has another schema, or has no result of that date.
    """
    file, at, date = name.rpartition("@")
    if not at or Path(name).exists():  # the name of the file may contain an @
        file, date = name, ""
    path = Path(file)
    content = read_json(path)
    try:
        entries = content if isinstance(content, list) else [content]
        results = [_result(entry, types) for entry in entries]
    except (ValueError, TypeError, RecursionError) as error:
        raise DocumentError(f"{path} cannot be used: {error}", HINT) from error
    chosen = tuple(result for result in results if result.environment.date.startswith(date))
    if not chosen:
        dates = ", ".join(sorted({result.environment.date[:10] for result in results}))
        raise DocumentError(
            f"{path} has no result of {date}" if date else f"{path} has no results",
            f"choose one of the dates {dates}" if dates else HINT,
        )
    return chosen


def _result(entry: Any, types: Mapping[str, type[DocumentType]]) -> DocumentType:
    schema = entry.get("schema") if isinstance(entry, dict) else None
    if not isinstance(schema, str) or schema not in types:
        raise ValueError(f"its schema is {schema!r:.60}, not {' or '.join(types)}")
    return parse(types[schema], entry)
