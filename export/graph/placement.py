"""Which edges of the graph are quantised, for which engine: a pure look at the graph.

Sources: NVIDIA, "TensorRT Developer Guide", section "Explicit Quantization" (Q/DQ placement
recommendations, propagation through pooling, residual additions) and "Working with DLA" (every
layer's boundary); ONNX Runtime, "Quantize ONNX
Models", section "Quantization on CPU" and its QDQ selectors: a convolution runs in integers when
both what it reads and what it gives are quantised.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from resdeploy.bundle.manifest import Encoding

WEIGHTED = ("Conv", "Gemm")
# They only choose or move values, or add zeros: what they give is on the grid of what they read.
SAME_GRID = ("MaxPool", "Flatten", "Pad")


@dataclass(frozen=True, slots=True)
class QuantizedEdge:
    """A tensor that is quantised for some of the nodes that read it.

    All of `readers` share one scale, which is that of the tensor `range_of`.
    """

    tensor: str
    range_of: str
    readers: tuple[tuple[str, int], ...]
    """Names of nodes, with the number of the input in question."""


def place(graph: ir.Graph, encoding: Encoding) -> tuple[QuantizedEdge, ...]:
    """The edges that `encoding` quantises, in the order of the graph."""
    if encoding is Encoding.TENSORRT:
        return _place_for_tensorrt(graph)
    if encoding in (Encoding.CPU, Encoding.DLA):
        return _place_everywhere(graph)
    return ()


def is_residual_add(node: ir.Node) -> bool:
    """An addition of two activations, as opposed to that of a constant."""
    return node.op_type == "Add" and not any(
        value is None or value.is_initializer() for value in node.inputs
    )


def float_shortcuts(graph: ir.Graph) -> frozenset[str]:
    """The residual additions: what a shortcut loses, every later block of its stage sees.

    In float, it is rounded nowhere, and a pooling that it comes from stays in float with it.
    """
    return frozenset(_name(node) for node in graph if is_residual_add(node))


def _place_for_tensorrt(graph: ir.Graph) -> tuple[QuantizedEdge, ...]:
    """What convolutions, the classifier and poolings read, and the skip side of additions.

    The other side of an addition stays float: its convolution, the addition and the ReLU fuse
    into one kernel, which adds before it rounds.
    """
    depth = _depths(graph)
    quantised: set[tuple[str, int]] = set()
    for node in graph:
        if node.op_type in WEIGHTED or node.op_type == "MaxPool":
            quantised.add((_name(node), 0))
        elif is_residual_add(node):
            depths = [depth[_producer_name(value)] for value in node.inputs if value is not None]
            quantised.add((_name(node), depths.index(min(depths))))
    return _edges(graph, quantised)


def _place_everywhere(graph: ir.Graph) -> tuple[QuantizedEdge, ...]:
    """Every edge behind the normalisation, except between a node and the ReLU that follows it."""
    quantised: set[tuple[str, int]] = set()
    behind: set[str] = set()  # nodes that a convolution's output reaches
    for node in graph:
        activations = [
            (index, value)
            for index, value in enumerate(node.inputs)
            if value is not None and not value.is_initializer() and value.producer() is not None
        ]
        if node.op_type not in WEIGHTED and not any(
            _producer_name(value) in behind for _, value in activations
        ):
            continue
        behind.add(_name(node))
        for index, value in activations:
            fuses = node.op_type == "Relu" and len(value.uses()) == 1
            if not fuses:
                quantised.add((_name(node), index))
    return _edges(graph, quantised)


def _edges(graph: ir.Graph, quantised: set[tuple[str, int]]) -> tuple[QuantizedEdge, ...]:
    edges: list[QuantizedEdge] = []
    range_of: dict[str, str] = {}
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        name = _value_name(value)
        producer = value.producer()
        source = name
        if producer is not None and producer.op_type in SAME_GRID:
            source = range_of.get(_value_name(producer.inputs[0]), name)
        readers = tuple(
            (_name(use.node), use.idx)
            for use in value.uses()
            if (_name(use.node), use.idx) in quantised
        )
        if readers:
            range_of[name] = source
            edges.append(QuantizedEdge(name, source, readers))
    return tuple(edges)


def _depths(graph: ir.Graph) -> dict[str, int]:
    """Longest way from the graph's input to each node, in nodes."""
    depth: dict[str, int] = {}
    for node in graph:
        before = [depth[_producer_name(v)] for v in node.inputs if v is not None and v.producer()]
        depth[_name(node)] = 1 + max(before, default=0)
    return depth


def _producer_name(value: ir.Value) -> str:
    producer = value.producer()
    assert producer is not None
    return _name(producer)


def _name(node: ir.Node) -> str:
    assert node.name is not None
    return node.name


def _value_name(value: ir.Value | None) -> str:
    assert value is not None
    assert value.name is not None
    return value.name
