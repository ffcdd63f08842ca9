"""JSON documents that one command writes and another reads, as frozen dataclasses.

`jsonable` converts a dataclass to JSON's types; `parse` and `decode` check a document and convert
it back. Documents are not trusted: their size is limited, and every field is checked.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from resdeploy.errors import DocumentError
from resdeploy.filesystem import read_limited, write_file
from resdeploy.readable_text import readable

MAX_BYTES = 64 << 20
# Each value takes up to 400 bytes of memory, so a document takes less than 200 MB.
MAX_VALUES = 500_000
MAX_DEPTH = 64  # of values in others; ours have at most ten
HINT = "name a file that --json or --output of a resdeploy command wrote"

Kind = TypeVar("Kind")

# Types as error messages name them, by msgspec's name.
_WORDS = {
    "array": "a list",
    "bool": "a boolean",
    "float": "a number",
    "int": "an integer",
    "null": "null",
    "object": "an object",
    "str": "a string",
}
# One step of msgspec's path to a value: a field, an index of a list, or any key of a mapping.
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]|\[\.\.\.\]")
# Those that stand for bytes above 127 are allowed.
_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file of at most `MAX_BYTES`.

    Raises:
        DocumentError: The file cannot be read, is too large, or is not JSON.
    """
    data = read_limited(path, MAX_BYTES, DocumentError, HINT)
    try:
        return strict_json(data)
    except ValueError as error:
        raise DocumentError(f"{path} is not JSON: {error}", HINT) from error


def decode(kind: type[Kind], data: bytes) -> Kind:
    """Return the JSON text `data` as an instance of `kind`; see `parse` for the checks.

    Raises:
        ValueError: `data` is not JSON, or does not fit `kind`.
    """
    return parse(kind, strict_json(data))


def strict_json(data: bytes) -> Any:
    """Return the value of a JSON text, the same one that any other reader would return.

    RFC 8259 leaves open what two equal keys, lone surrogates and very large numbers mean. A lone
    surrogate may only stand for a byte of a path that is not UTF-8, see `to_text`.

    Raises:
        ValueError: `data` is not JSON, has such parts, is nested too deeply or has too many values.
    """
    # Every value but the first stands behind one of these characters.
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise ValueError(f"it has more than {MAX_VALUES:,} values")
    try:
        document = json.loads(
            data.decode(), object_pairs_hook=_unique, parse_int=_number, parse_float=_number,
            parse_constant=_number,
        )  # fmt: skip
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    level = [document]
    for _ in range(MAX_DEPTH):
        if any(isinstance(entry, str) and _SURROGATE.search(entry) for entry in level):
            raise ValueError("it has a lone surrogate, which is no character")
        inner = [(*e, *e.values()) if isinstance(e, dict) else e for e in level]
        level = list(chain.from_iterable(e for e in inner if isinstance(e, (list, tuple))))
        if not level:
            return document
    raise ValueError("it is nested too deeply")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r:.60} is there twice")
    return document


def _number(text: str) -> float:
    number = float(text)  # NaN and Infinity, too
    if not math.isfinite(number) or ((integer := text.lstrip("-").isdigit()) and len(text) > 20):
        raise ValueError(f"it has the number {text:.30}, which is too large")
    return int(text) if integer else number


def parse(kind: type[Kind], value: Any, where: str = "") -> Kind:
    """Return a JSON value as an instance of `kind`, in most cases a dataclass.

    Unknown keys are ignored, and fields with a default may be missing, so that documents of other
    versions can be read. Numbers must be finite. Error messages call the value `where`.

    Raises:
        ValueError: A key is missing, or a value is not allowed; the message names its place.
    """
    import msgspec  # imported here, because it takes 30 ms and few commands read a document

    _check_finite(value, where)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ValueError(_explain(error, kind, where)) from error


def jsonable(value: Any) -> Any:
    """Convert `value` to JSON's types: dataclasses become objects, enums and paths strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(entry) for entry in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def write_document(path: Path, result: Any) -> None:
    """Write a result to a JSON file, in the form that `--json` prints."""
    write_file(path, (to_text(result) + "\n").encode())


def to_text(result: Any, *, allow_nan: bool = True) -> str:
    r"""Return a result as JSON with an indent; unprintable characters become such as `\u001b`."""
    text = json.dumps(jsonable(result), indent=2, ensure_ascii=False, allow_nan=allow_nan)
    return readable(text, keep="\n", json=True)


def one_line(values: Mapping[str, Any]) -> str:
    """Return an object as one line of JSON, with the escapes of `to_text`."""
    return readable(json.dumps(values, ensure_ascii=False, default=str), json=True)


def _check_finite(value: Any, where: str) -> None:
    remaining = [(where, value)]
    while remaining:
        place, entry = remaining.pop()
        if isinstance(entry, dict):
            remaining += [(f"{place}.{key}", inner) for key, inner in entry.items()]
        elif isinstance(entry, (list, tuple)):
            remaining += [(f"{place}[{index}]", inner) for index, inner in enumerate(entry)]
        elif isinstance(entry, float) and not math.isfinite(entry):
            raise ValueError(f"{_name(place)} is {entry}, not a finite number")


def _name(place: str) -> str:
    return place.removeprefix(".") or "the document"


def _explain(error: Exception, kind: Any, where: str) -> str:
    """Return msgspec's message in plain words, after the place of the value."""
    message, _, path = str(error).partition(" - at `$")
    path = path.rstrip("`")
    place = _name(where + path)
    if missing := re.fullmatch("Object missing required field `(.+)`", message):
        return f"{place} has no {missing[1]}"
    if length := re.fullmatch(r"Expected `array` of length (\d+), got (\d+)", message):
        return f"{place} has {length[2]} entries, not {length[1]}"
    if unknown := re.fullmatch("Invalid enum value (.+)", message):
        choices = ", ".join(str(member.value) for member in _enum_at(kind, path))
        return f"{place} is {unknown[1]:.40}, not one of {choices}"
    if types := re.fullmatch("Expected `(.+)`, got `(.+)`", message):
        allowed = " or ".join(_WORDS.get(word, word) for word in types[1].split(" | "))
        return f"{place} is {_WORDS.get(types[2], types[2])}, not {allowed}"
    return f"{place}: {message}" if where or path else message


def _enum_at(kind: Any, path: str) -> Any:
    """Return the enum class of the value at `path` in a document of type `kind`."""
    from msgspec import inspect

    def without_null(node: Any) -> Any:
        parts = node.types if isinstance(node, inspect.UnionType) else (node,)
        return next(part for part in parts if not isinstance(part, inspect.NoneType))

    node = without_null(inspect.type_info(kind))
    for name, index in _STEP.findall(path):
        if name:
            node = next(field.type for field in node.fields if field.name == name)
        elif isinstance(node, inspect.TupleType):
            node = node.item_types[int(index)]
        else:
            node = node.item_type if index else node.value_type
        node = without_null(node)
    return node.cls
