"""Results of earlier commands, read from their JSON files: `FILE`, or `FILE@DATE` of several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from resdeploy.documents import HINT, parse, read_json
from resdeploy.errors import DocumentError
from resdeploy.results.provenance import Environment


class Result(Protocol):
    """A dataclass that says where it is from."""

    @property
    def environment(self) -> Environment:
        """It."""
        ...


Kind = TypeVar("Kind", bound=Result)


def read_results(name: str, kinds: Mapping[str, type[Kind]]) -> tuple[Kind, ...]:
    """All documents of a file: it holds one, or a list.

    Args:
        name: The file; behind an `@` the date, or its beginning, of those that are meant.
        kinds: What may be in it, by its schema.

    Raises:
        DocumentError: the file is damaged, holds something else, or nothing of that date.
    """
    path, date = _split(name)
    content = read_json(path)
    try:
        entries = content if isinstance(content, list) else [content]
        results = [_result(entry, kinds) for entry in entries]
    except (ValueError, TypeError, RecursionError) as error:
        raise DocumentError(f"{path} cannot be used: {error}", HINT) from error
    chosen = tuple(result for result in results if result.environment.date.startswith(date))
    if not chosen:
        dates = ", ".join(sorted({result.environment.date[:10] for result in results}))
        raise DocumentError(
            f"{path} holds nothing of {date}" if date else f"{path} is empty",
            f"choose from {dates}" if dates else HINT,
        )
    return chosen


def _split(name: str) -> tuple[Path, str]:
    path, at, date = name.rpartition("@")
    if not at or Path(name).exists():  # a name may hold an @ itself
        return Path(name), ""
    return Path(path), date


def _result(entry: Any, kinds: Mapping[str, type[Kind]]) -> Kind:
    schema = entry.get("schema") if isinstance(entry, dict) else None
    if not isinstance(schema, str) or schema not in kinds:
        raise ValueError(f"its schema is {schema!r:.60}, not {' or '.join(kinds)}")
    return parse(kinds[schema], entry)
