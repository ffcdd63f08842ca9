"""A strict reader of ONNX files: a graph that holds anything but plain layers is refused.

Inference engines read much more of the format than our graphs use: tensors in other files or, in
OpenVINO, at an address in memory; loops; functions; operators of other libraries. A file that uses
such a part is refused before an engine sees it. Weights are not copied.

Source of messages and field numbers: onnx.proto of https://github.com/onnx/onnx; of the encoding:
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from math import prod
from typing import Any, TypeVar

Shape = tuple[int, ...]
Buffer = bytes | memoryview
Attribute = int | float | bytes | tuple[int, ...]
T = TypeVar("T")
_Raw = int | bytes | memoryview
"""A value as it is encoded: an integer of variable size, four or eight bytes, or a sized part."""

# Names and lists of integers are short in every graph. The largest of ours has about 3,000 nodes. A
# node and its weights have about 20 fields; the maximum of fields takes 1 s and 70 MB.
MAX_TEXT_BYTES = 4096
MAX_NODES = 10_000
MAX_GRAPH_FIELDS = 300_000
MAX_RANK = 8
ITEM_BYTES = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 10: 2}
"""Bytes per element by the number of the data type: float32, uint8, int8, int32, int64, float16."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant tensor."""

    data_type: int
    shape: Shape
    data: memoryview
    """The elements as bytes, little-endian."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operation."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Attribute]


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output of the graph."""

    name: str
    data_type: int
    shape: tuple[int | str, ...]
    """Sizes; a name for a size that is not fixed."""


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """The parts of an ONNX file that determine what it computes."""

    opset: int
    nodes: tuple[Node, ...]
    weights: dict[str, Weight]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


def read_onnx(data: Buffer) -> OnnxGraph:
    """Read an ONNX file.

    Raises:
        ValueError: The file is damaged, or uses a part of the format that our graphs do not use.
    """
    model = _read(memoryview(data), _MODEL, count())
    if "graph" not in model or len(model["opset"]) != 1:
        raise ValueError("it does not hold exactly one graph and one version of the operators")
    graph, (opset,) = model["graph"], model["opset"]
    _check_domain(opset)
    if len(graph["node"]) > MAX_NODES:
        raise ValueError(f"it has more than {MAX_NODES:,} nodes")
    return OnnxGraph(
        opset.get("version", 0),
        tuple(map(_node, graph["node"])),
        _by_name(map(_weight, graph["initializer"])),
        tuple(map(_value, graph["input"])),
        tuple(map(_value, graph["output"])),
    )


def _node(fields: dict[str, Any]) -> Node:
    _check_domain(fields)
    attributes = _by_name(map(_attribute, fields["attribute"]))
    inputs, outputs = tuple(fields["input"]), tuple(fields["output"])
    return Node(fields.get("op_type", ""), inputs, outputs, attributes)


def _attribute(fields: dict[str, Any]) -> tuple[str, Attribute]:
    name, kind = fields.get("name", ""), _ATTRIBUTE_TYPES.get(fields.get("type", 0))
    values = {key: fields[key] for key in _ATTRIBUTE_TYPES.values() if fields.get(key, []) != []}
    # An engine reads the value of the stated type, so there must be no other.
    if kind is None or not values.keys() <= {kind}:
        raise ValueError(f"the attribute {name!r:.60} has no type, or values of another type")
    return name, tuple(fields["ints"]) if kind == "ints" else values.get(kind, 0)


def _weight(fields: dict[str, Any]) -> tuple[str, Weight]:
    name, data_type, shape = fields.get("name", ""), fields.get("data_type", 0), fields["dims"]
    data = fields.get("raw_data", memoryview(b""))
    if fields.get("location", 0) != 0:
        raise ValueError("it uses weights outside of the file")
    if data_type not in ITEM_BYTES:
        raise ValueError(f"the weight {name!r:.60} has the data type number {data_type}")
    if len(shape) > MAX_RANK or any(not 0 <= size < 1 << 31 for size in shape):
        raise ValueError(f"a weight has the shape {shape!r:.60}")
    if prod(shape) * ITEM_BYTES[data_type] != len(data):
        raise ValueError(f"the weight {name!r:.60} has another size than its shape")
    return name, Weight(data_type, tuple(shape), data)


def _value(fields: dict[str, Any]) -> Value:
    tensor = fields.get("type", {}).get("tensor_type", {})
    sizes = tensor.get("shape", {}).get("dim", [])
    if any({"value", "param"} <= size.keys() for size in sizes):
        raise ValueError("a size is a number and a name")
    shape = tuple(size.get("value", size.get("param", "")) for size in sizes)
    return Value(fields.get("name", ""), tensor.get("elem_type", 0), shape)


def _check_domain(fields: dict[str, Any]) -> None:
    if (domain := fields.get("domain", "")) not in ("", "ai.onnx"):
        raise ValueError(f"it uses operators of {domain!r:.60}")


def _by_name(pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    found: dict[str, T] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"two weights or attributes have the name {name!r:.60}")
        found[name] = value
    return found


def _bytes(value: _Raw) -> memoryview:
    if not isinstance(value, memoryview):
        raise ValueError("it is damaged: a field has another type")  # noqa: TRY004
    return value


def _short(value: _Raw) -> memoryview:
    if len(data := _bytes(value)) > MAX_TEXT_BYTES:
        raise ValueError(f"it has a name or a list of more than {MAX_TEXT_BYTES} bytes")
    return data


def _text(value: _Raw) -> str:
    return str(_short(value), "utf-8")


def _float(value: _Raw) -> float:
    if not isinstance(value, bytes) or len(value) != 4:
        raise ValueError("it is damaged: a number is missing")
    return float(struct.unpack("<f", value)[0])


def _integer(value: _Raw) -> int:
    if not isinstance(value, int):
        raise ValueError("it is damaged: an integer is missing")  # noqa: TRY004
    return value - (1 << 64) if value >= 1 << 63 else value


def _integers(value: _Raw) -> list[int]:
    """Return the integers of one field, which may be packed."""
    if isinstance(value, int):
        return [_integer(value)]
    data, position = _short(value), 0
    numbers = []
    while position < len(data):
        number, position = _varint(data, position)
        numbers.append(_integer(number))
    return numbers


def _ignore(value: _Raw) -> None:
    """Read nothing: the field has no effect on what a graph computes."""


# The allowed fields of each message by their numbers: the name, and the function or the table that
# reads it. A field that is missing here is refused; one without a reader is refused by its name.
_Table = dict[int, tuple[str, "Callable[[_Raw], Any] | _Table | None"]]
_REPEATED = frozenset(("attribute", "dim", "dims", "initializer", "input", "ints", "node", "opset",
                       "output", "ignored"))  # fmt: skip
_IGNORED = ("ignored", _ignore)
_OPSET: _Table = {1: ("domain", _text), 2: ("version", _integer)}
_DIM: _Table = {1: ("value", _integer), 2: ("param", _text), 3: _IGNORED}
_SHAPE: _Table = {1: ("dim", _DIM)}
_TENSOR_TYPE: _Table = {1: ("elem_type", _integer), 2: ("shape", _SHAPE)}
_TYPE: _Table = {1: ("tensor_type", _TENSOR_TYPE), 6: _IGNORED}
_VALUE: _Table = {1: ("name", _text), 2: ("type", _TYPE), 3: _IGNORED, 4: _IGNORED}
_TENSOR: _Table = {
    1: ("dims", _integers), 2: ("data_type", _integer), 8: ("name", _text), 9: ("raw_data", _bytes),
    12: _IGNORED, 13: ("weights outside of the file", None), 14: ("location", _integer),
    16: _IGNORED,
}  # fmt: skip
_ATTRIBUTE_TYPES = {1: "f", 2: "i", 3: "s", 7: "ints"}
_ATTRIBUTE: _Table = {
    1: ("name", _text), 2: ("f", _float), 3: ("i", _integer),
    4: ("s", lambda value: bytes(_short(value))), 5: ("a tensor in a node", None),
    6: ("a graph in a node", None), 8: ("ints", _integers), 11: ("graphs in a node", None),
    13: _IGNORED, 20: ("type", _integer),
}  # fmt: skip
_NODE: _Table = {
    1: ("input", _text), 2: ("output", _text), 3: _IGNORED, 4: ("op_type", _text),
    5: ("attribute", _ATTRIBUTE), 6: _IGNORED, 7: ("domain", _text), 9: _IGNORED,
}  # fmt: skip
_GRAPH: _Table = {
    1: ("node", _NODE), 2: _IGNORED, 5: ("initializer", _TENSOR), 10: _IGNORED,
    11: ("input", _VALUE), 12: ("output", _VALUE), 13: _IGNORED, 15: ("sparse weights", None),
    16: _IGNORED,
}  # fmt: skip
_MODEL: _Table = {
    **dict.fromkeys((1, 2, 3, 4, 5, 6, 14), _IGNORED), 7: ("graph", _GRAPH), 8: ("opset", _OPSET),
    20: ("training", None), 25: ("functions", None),
}  # fmt: skip


def _read(data: memoryview, table: _Table, counter: Iterator[int]) -> dict[str, Any]:
    """Return the fields of a message by name: a list of those in `_REPEATED`.

    Parsers join other messages that occur twice, and take the last of other values, so a field that
    occurs twice is refused. `counter` counts the fields of the file.
    """
    found: dict[str, Any] = {name: [] for name, _ in table.values() if name in _REPEATED}
    for number, value in _entries(data):
        if next(counter) >= MAX_GRAPH_FIELDS:
            raise ValueError(f"it has more than {MAX_GRAPH_FIELDS:,} fields")
        name, kind = table.get(number, (f"field {number} of a message", None))
        if kind is None:
            raise ValueError(f"it uses {name}, which no graph of resdeploy has")
        content = _read(_bytes(value), kind, counter) if isinstance(kind, dict) else kind(value)
        if name in _REPEATED:
            found[name] += content if isinstance(content, list) else [content]
        elif name in found:
            raise ValueError(f"it holds {name} twice")
        else:
            found[name] = content
    return found


def _entries(data: memoryview) -> Iterator[tuple[int, _Raw]]:
    """Yield the number and the value of each field of a message."""
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(wire_type, -1)
        if wire_type == 2:
            size, position = _varint(data, position)
        if not 0 <= size <= end - position:
            raise ValueError("it is cut off or damaged")
        part = data[position : position + size]
        # Parsers skip a field of another type than that of the format, so the types must differ.
        yield number, part if wire_type == 2 else bytes(part)
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """Return an integer of at most 64 bits, and the position after it."""
    result = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & (1 << 64) - 1, position
    raise ValueError("it is cut off or damaged")
