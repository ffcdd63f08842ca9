"""A strict reader of ONNX files: a graph that holds anything but plain layers is refused.

Inference engines read much more of the format than our graphs use: tensors in other files or, in
OpenVINO, at an address in memory; loops; functions; operators of other libraries. A file that uses
such a part is refused before an engine sees it. Weights are not copied.

Source of messages and field numbers: onnx.proto of https://github.com/onnx/onnx; of the encoding:
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

Shape = tuple[int, ...]
Buffer = bytes | memoryview
Attribute = int | float | bytes | tuple[int, ...]

# Names and documentation are short in every graph; the largest of ours has about 3,000 nodes.
MAX_TEXT_BYTES = 4096
MAX_NODES = 10_000
MAX_RANK = 8
ITEM_BYTES = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 10: 2}
"""Bytes per element by the number of the data type: float32, uint8, int8, int32, int64, float16."""

# The allowed fields of each message. A field that is missing here is refused; `_PARTS` names some.
_MODEL = {1: "ir_version", 2: "producer", 3: "producer", 4: "domain", 5: "version", 6: "doc",
          7: "graph", 8: "opset", 14: "metadata"}  # fmt: skip
_GRAPH = {1: "node", 2: "name", 5: "initializer", 10: "doc", 11: "input", 12: "output",
          13: "value_info", 16: "metadata"}  # fmt: skip
_NODE = {1: "input", 2: "output", 3: "name", 4: "op_type", 5: "attribute", 6: "doc", 7: "domain",
         9: "metadata"}  # fmt: skip
_ATTRIBUTE = {1: "name", 2: "f", 3: "i", 4: "s", 7: "floats", 8: "ints", 13: "doc", 20: "type"}
_ATTRIBUTE_TYPES = {1: "f", 2: "i", 3: "s", 6: "floats", 7: "ints"}
_TENSOR = {1: "dims", 2: "data_type", 8: "name", 9: "raw_data", 12: "doc", 14: "location",
           16: "metadata"}  # fmt: skip
_VALUE = {1: "name", 2: "type", 3: "doc", 4: "metadata"}
_TYPE = {1: "tensor_type", 6: "denotation"}
_TENSOR_TYPE = {1: "elem_type", 2: "shape"}
_SHAPE = {1: "dim"}
_DIM = {1: "value", 2: "param", 3: "denotation"}
_OPSET = {1: "domain", 2: "version"}
_PARTS = {
    (id(_MODEL), 20): "training", (id(_MODEL), 25): "functions",
    (id(_GRAPH), 15): "sparse weights", (id(_ATTRIBUTE), 5): "a tensor in a node",
    (id(_ATTRIBUTE), 6): "a graph in a node", (id(_ATTRIBUTE), 11): "graphs in a node",
    (id(_TENSOR), 13): "weights outside of the file",
}  # fmt: skip


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
    opsets: list[int] = []
    graphs: list[memoryview] = []
    for name, value in _fields(memoryview(data), _MODEL):
        if name == "graph":
            graphs.append(_bytes(value))
        elif name == "opset":
            opset = _single(value, _OPSET)
            if _text(opset.get("domain", b"")) not in ("", "ai.onnx"):
                raise ValueError(f"it uses operators of {_text(opset['domain'])!r:.60}")
            opsets.append(_integer(opset.get("version", 0)))
    if len(graphs) != 1 or len(opsets) != 1:
        raise ValueError("it does not hold exactly one graph and one version of the operators")
    return _read_graph(graphs[0], opsets[0])


def _read_graph(data: memoryview, opset: int) -> OnnxGraph:
    nodes: list[Node] = []
    weights: dict[str, Weight] = {}
    values: dict[str, list[Value]] = {"input": [], "output": []}
    for name, value in _fields(data, _GRAPH):
        if name == "node":
            nodes.append(_read_node(_bytes(value)))
            if len(nodes) > MAX_NODES:
                raise ValueError(f"it has more than {MAX_NODES:,} nodes")
        elif name == "initializer":
            key, weight = _read_weight(_bytes(value))
            if weights.setdefault(key, weight) is not weight:
                raise ValueError(f"two weights have the name {key!r:.60}")
        elif name in values:
            values[name].append(_read_value(_bytes(value)))
    return OnnxGraph(opset, tuple(nodes), weights, tuple(values["input"]), tuple(values["output"]))


def _read_node(data: memoryview) -> Node:
    texts: dict[str, list[str]] = {"input": [], "output": [], "op_type": [""], "domain": [""]}
    attributes: dict[str, Attribute] = {}
    for name, value in _fields(data, _NODE):
        if name == "attribute":
            key, attribute = _read_attribute(_bytes(value))
            if key in attributes:
                raise ValueError(f"a node has two attributes {key!r:.60}")
            attributes[key] = attribute
        elif name in texts:
            texts[name].append(_text(value))
    if texts["domain"][-1] not in ("", "ai.onnx"):
        raise ValueError(f"it uses operators of {texts['domain'][-1]!r:.60}")
    inputs, outputs = tuple(texts["input"]), tuple(texts["output"])
    return Node(texts["op_type"][-1], inputs, outputs, attributes)


def _read_attribute(data: memoryview) -> tuple[str, Attribute]:
    key, stated = "", 0
    values: dict[str, Attribute] = {}
    for name, value in _fields(data, _ATTRIBUTE):
        if name == "name":
            key = _text(value)
        elif name == "type":
            stated = _integer(value)
        elif name == "i":
            values[name] = _integer(value)
        elif name == "f":
            if len(_bytes(value)) != 4:
                raise ValueError("it is damaged: a number is missing")
            (values[name],) = struct.unpack("<f", _bytes(value))
        elif name == "s":
            values[name] = _text(value).encode()
        elif name == "ints":
            values[name] = (*values.get(name, ()), *_integers(value))  # type: ignore[misc]
    kind = _ATTRIBUTE_TYPES.get(stated, "")
    # An engine reads the value of the stated type, so there must be no other.
    if not values.keys() <= {kind}:
        raise ValueError(f"the attribute {key!r:.60} has values of several types")
    return key, values.get(kind, () if kind == "ints" else 0)


def _read_weight(data: memoryview) -> tuple[str, Weight]:
    key, data_type, location = "", 0, 0
    shape: list[int] = []
    raw = memoryview(b"")
    for name, value in _fields(data, _TENSOR):
        if name == "dims":
            shape += _integers(value)
        elif name == "data_type":
            data_type = _integer(value)
        elif name == "name":
            key = _text(value)
        elif name == "raw_data":
            raw = _bytes(value)
        elif name == "location":
            location = _integer(value)
    if location != 0:
        raise ValueError("it uses weights outside of the file")
    if data_type not in ITEM_BYTES:
        raise ValueError(f"the weight {key!r:.60} has the data type number {data_type}")
    if _elements(shape) * ITEM_BYTES[data_type] != len(raw):
        raise ValueError(f"the weight {key!r:.60} has another size than its shape")
    return key, Weight(data_type, tuple(shape), raw)


def _read_value(data: memoryview) -> Value:
    fields = _single(data, _VALUE)
    kind = _single(fields.get("type", b""), _TYPE)
    tensor = _single(kind.get("tensor_type", b""), _TENSOR_TYPE)
    sizes: list[int | str] = []
    for _, value in _fields(_bytes(tensor.get("shape", b"")), _SHAPE):
        dimension = _single(value, _DIM)
        size = dimension.get("value")
        sizes.append(_text(dimension.get("param", b"")) if size is None else _integer(size))
    name, data_type = _text(fields.get("name", b"")), _integer(tensor.get("elem_type", 0))
    return Value(name, data_type, tuple(sizes))


def _single(data: int | Buffer, names: dict[int, str]) -> dict[str, int | Buffer]:
    """Return the fields of a message in which each may occur once.

    Parsers join messages that occur twice, so the last one alone would not be what they read.
    """
    fields = list(_fields(_bytes(data), names))
    if len(dict(fields)) != len(fields):
        raise ValueError("it holds a field twice")
    return dict(fields)


def _elements(shape: list[int]) -> int:
    """Return the number of elements; every size, and so the number, fits in 64 bits."""
    if len(shape) > MAX_RANK or any(not 0 <= size < 1 << 31 for size in shape):
        raise ValueError(f"a weight has the shape {shape!r:.60}")
    return prod(shape)


def _fields(data: memoryview, names: dict[int, str]) -> Iterator[tuple[str, int | Buffer]]:
    """Yield the name and value of each field of a message, which must be in `names`."""
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        number, wire_type = key >> 3, key & 7
        if number not in names:
            part = _PARTS.get((id(names), number), f"field {number} of a message")
            raise ValueError(f"it uses {part}, which no graph of resdeploy has")
        value: int | Buffer
        if wire_type == 0:
            value, position = _varint(data, position)
        else:
            size = {1: 8, 5: 4}.get(wire_type, -1)
            if wire_type == 2:
                size, position = _varint(data, position)
            if size < 0 or size > end - position:
                raise ValueError("it is cut off or damaged")
            value = data[position : position + size]
            position += size
        yield names[number], value


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


def _integer(value: int | Buffer) -> int:
    if not isinstance(value, int):
        raise ValueError("it is damaged: an integer is missing")  # noqa: TRY004
    return value - (1 << 64) if value >= 1 << 63 else value


def _integers(value: int | Buffer) -> list[int]:
    """Return the integers of one field, which may be packed."""
    if isinstance(value, int):
        return [_integer(value)]
    view, position = memoryview(value), 0
    result = []
    while position < len(view):
        number, position = _varint(view, position)
        result.append(_integer(number))
    return result


def _bytes(value: int | Buffer) -> memoryview:
    if isinstance(value, int):
        raise ValueError("it is damaged: a message is missing")  # noqa: TRY004
    return memoryview(value)


def _text(value: int | Buffer) -> str:
    data = _bytes(value)
    if len(data) > MAX_TEXT_BYTES:
        raise ValueError(f"it has a name of more than {MAX_TEXT_BYTES} bytes")
    return str(data, "utf-8")
