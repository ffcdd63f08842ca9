"""JSON documents that one command writes and another reads: typed, limited, believed in nothing.

`parse` is the counterpart of `console.jsonable`: the dataclass that was written is what is read.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from resdeploy.errors import DocumentError
from resdeploy.storage import write_file

MAX_BYTES = 64 << 20
HINT = "name a file that --json or --output of a resdeploy command wrote"

Kind = TypeVar("Kind")


def read_json(path: Path) -> Any:
    """The content of a JSON file of at most `MAX_BYTES`.

    Raises:
        DocumentError: it cannot be read, is too large, or is not JSON.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise DocumentError(f"{path} cannot be read: {error.strerror or error}", HINT) from error
    if len(data) > MAX_BYTES:
        raise DocumentError(f"{path} is larger than {MAX_BYTES >> 20} MiB", HINT)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{path} is not JSON: {error}", HINT) from error


def parse(kind: type[Kind], value: Any, where: str = "the document") -> Kind:
    """`value`, as JSON has it, as an instance of the dataclass `kind`.

    Keys that `kind` does not know are passed over, and fields with a default may be missing: so a
    document of a later version can be read. Numbers must be finite.

    Raises:
        TypeError, ValueError: a key is missing, or a value is another one than `kind` has; the
            message says where.
    """
    if not isinstance(value, dict):
        raise TypeError(f"{where} is not an object")
    hints = get_type_hints(kind)
    given: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]  # only dataclasses come here
        if field.name in value:
            given[field.name] = _parse(hints[field.name], value[field.name], field.name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{where} has no {field.name}")
    return kind(**given)


def _parse(kind: Any, value: Any, where: str) -> Any:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is UnionType:
        if value is None and NoneType in parts:
            return None
        (kind,) = [part for part in parts if part is not NoneType]
        return _parse(kind, value, where)
    if origin is tuple:
        return _parse_tuple(parts, value, where)
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise TypeError(f"{where} is not an object")
        return {key: _parse(parts[1], entry, f"{where}.{key}") for key, entry in value.items()}
    if isinstance(kind, type) and is_dataclass(kind):
        return parse(kind, value, where)
    if issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError as error:
            choices = ", ".join(str(one.value) for one in kind)
            raise ValueError(f"{where} is {value!r:.40}, not one of {choices}") from error
    return _parse_plain(kind, value, where)


def _parse_tuple(parts: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{where} is not a list")
    if parts[-1] is Ellipsis:
        return tuple(_parse(parts[0], entry, f"{where}[]") for entry in value)
    if len(value) != len(parts):
        raise ValueError(f"{where} has {len(value)} entries, not {len(parts)}")
    return tuple(_parse(part, entry, f"{where}[]") for part, entry in zip(parts, value))


def _parse_plain(kind: Any, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1 << 1000 else math.inf
    if isinstance(value, bool) is not (kind is bool) or not isinstance(value, kind):
        raise TypeError(f"{where} is {value!r:.40}, not {kind.__name__}")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{where} is not finite")
    return value


def jsonable(value: Any) -> Any:
    """Dataclasses, enums and paths as what JSON has; floats stay exact."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): jsonable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(entry) for entry in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def write_document(path: Path, result: Any) -> None:
    """What `--json` prints, as a file.

    Raises:
        OutputError: the file cannot be written.
    """
    write_file(path, (json.dumps(jsonable(result), indent=2, ensure_ascii=False) + "\n").encode())
