"""Which nodes an engine will run in integers, told from an INT8 graph alone.

Sources: NVIDIA, "TensorRT Developer Guide", section "Explicit Quantization": a convolution between
DequantizeLinear and QuantizeLinear is an INT8 kernel, and takes the addition and ReLU behind it
along when the addition's other side is INT8 too. ONNX Runtime's QDQ selectors: on a CPU a node is
an integer kernel when all that it reads and all that it gives is quantised.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from resdeploy.bundle.manifest import Encoding
from resdeploy.export.graph.placement import SAME_GRID, WEIGHTED, is_residual_add

QDQ = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, slots=True, kw_only=True)
class Island:
    """Nodes beside each other that stay float."""

    nodes: tuple[str, ...]
    dtype: str
    """`float32` or `float16`, of what the last one gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What runs in integers, what in float."""

    convs: int
    int8_convs: int
    additions: int
    """Residual ones."""
    fused_additions: int
    """TensorRT: part of an INT8 convolution's kernel. Elsewhere: integer kernels of their own."""
    islands: tuple[Island, ...]


def coverage(graph: ir.Graph, encoding: Encoding) -> Coverage:
    """Look at every node of an INT8 graph of `encoding`."""
    integer = {_name(node) for node in graph if _is_integer(node, encoding)}
    if encoding is Encoding.TENSORRT:
        for node in graph:
            if is_residual_add(node) and _fuses_with_convolution(node, integer):
                integer.add(_name(node))
    # A ReLU is part of the kernel before it; what only chooses or moves values follows its input.
    for node in graph:
        if node.op_type in ("Relu", *SAME_GRID) and (
            _reads_int8(node, 0) or _source(node.inputs[0]) in integer
        ):
            integer.add(_name(node))
    convs = [node for node in graph if node.op_type == "Conv"]
    additions = [node for node in graph if is_residual_add(node)]
    return Coverage(
        convs=len(convs),
        int8_convs=sum(_name(node) in integer for node in convs),
        additions=len(additions),
        fused_additions=sum(_name(node) in integer for node in additions),
        islands=tuple(_islands(graph, integer)),
    )


def _is_integer(node: ir.Node, encoding: Encoding) -> bool:
    if node.op_type in WEIGHTED:
        reads = _reads_int8(node, 0) and _reads_int8(node, 1)
    elif encoding is not Encoding.TENSORRT and (
        is_residual_add(node) or node.op_type == "GlobalAveragePool"
    ):
        reads = all(_reads_int8(node, index) for index in range(len(node.inputs)))
    else:
        return False
    return reads and (encoding is Encoding.TENSORRT or _gives_int8(node))


def _fuses_with_convolution(addition: ir.Node, integer: set[str]) -> bool:
    """One side comes straight from an INT8 convolution that only it reads, the other is INT8."""
    for index, value in enumerate(addition.inputs):
        if value is None or (producer := value.producer()) is None:
            continue
        mine = producer.op_type == "Conv" and _name(producer) in integer
        if mine and len(value.uses()) == 1 and _reads_int8(addition, 1 - index):
            return True
    return False


def _reads_int8(node: ir.Node, index: int) -> bool:
    value = node.inputs[index] if index < len(node.inputs) else None
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _gives_int8(node: ir.Node) -> bool:
    """All readers quantise, perhaps behind a ReLU; the graph's own output has none."""
    (value,) = node.outputs
    users = [use.node for use in value.uses()]
    if len(users) == 1 and users[0].op_type == "Relu":
        return _gives_int8(users[0])
    return all(user.op_type == "QuantizeLinear" for user in users)


def _source(value: ir.Value | None) -> str | None:
    producer = None if value is None else value.producer()
    return None if producer is None else _name(producer)


def _islands(graph: ir.Graph, integer: set[str]) -> Iterator[Island]:
    """Float nodes, each with those that it touches, in the order of the graph."""
    left = {
        _name(node): node
        for node in graph
        if _name(node) not in integer and node.op_type not in QDQ
    }
    while left:
        name, node = next(iter(left.items()))
        island, edge = [], [node]
        del left[name]
        while edge:
            node = edge.pop()
            island.append(node)
            edge.extend(other for other in _neighbours(node) if left.pop(_name(other), None))
        ordered = [node for node in graph if node in island]
        dtype = ordered[-1].outputs[0].dtype
        yield Island(
            nodes=tuple(_name(node) for node in ordered),
            dtype="float16" if dtype is ir.DataType.FLOAT16 else "float32",
        )


def _neighbours(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.inputs:
        if value is not None and (producer := value.producer()) is not None:
            yield producer
    for value in node.outputs:
        for use in value.uses():
            yield use.node


def _name(node: ir.Node) -> str:
    assert node.name is not None
    return node.name
