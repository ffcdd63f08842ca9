"""Q/DQ placement: the edges of a graph that are quantised for each kind of engine.

Sources: NVIDIA, "TensorRT Developer Guide", section "Explicit Quantization" (Q/DQ placement
recommendations, propagation through pooling, residual additions) and "Working with DLA" (inputs
and outputs of every layer); ONNX Runtime, "Quantize ONNX Models", section "Quantization on CPU",
and its QDQ selectors: a convolution runs in integers if its input and its output are quantised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

import onnx_ir as ir

from resdeploy.bundle.manifest import Encoding

WEIGHTED = ("Conv", "Gemm")
QDQ = ("QuantizeLinear", "DequantizeLinear")
# Nodes of these types only select or move values, or add zeros. So the output keeps the scale.
SAME_GRID = ("MaxPool", "Flatten", "Pad", "Reshape", "Transpose")
# Activations that limit values: a kernel that rounds its output to a range limits them, too.
LIMITS = ("Relu", "Clip")
# Nodes for which ONNX Runtime has integer kernels on CPUs, besides residual additions.
INTEGER_ON_CPU = (*WEIGHTED, *SAME_GRID, "AveragePool", "Concat", "GlobalAveragePool")


@dataclass(frozen=True, slots=True)
class QuantizedEdge:
    """Tensor that is quantised for some of the nodes that read it."""

    tensor: str
    range_of: str
    """Name of the tensor whose range gives the scale; for a pooled tensor, the pooling's input."""
    readers: tuple[tuple[str, int], ...]
    """Names of the nodes that read the quantised tensor, each with the index of its input."""


def place(graph: ir.Graph, encoding: Encoding) -> tuple[QuantizedEdge, ...]:
    """Return the edges that `encoding` quantises, in the order of the graph."""
    if encoding is Encoding.TENSORRT:
        return _place_for_tensorrt(graph)
    if encoding in (Encoding.CPU, Encoding.DLA):
        return _place_everywhere(graph)
    return ()


def is_residual_add(node: ir.Node) -> bool:
    """Return True if the node adds two activations, and not a constant."""
    return node.op_type == "Add" and all(is_activation(value) for value in node.inputs)


def is_activation(value: ir.Value | None) -> TypeGuard[ir.Value]:
    """Return True if the input of a node is present and depends on the image."""
    return value is not None and not value.is_initializer()


def float_shortcuts(graph: ir.Graph) -> frozenset[str]:
    """Return the names of the residual additions, which are kept in float for accuracy.

    A rounding error in a shortcut propagates to all later blocks of its stage. A pooling before
    an addition stays in float with it.
    """
    return frozenset(node_name(node) for node in graph if is_residual_add(node))


def node_name(node: ir.Node) -> str:
    """Return the name of a node, which must have one."""
    assert node.name is not None
    return node.name


def value_name(value: ir.Value | None) -> str:
    """Return the name of a tensor, which must have one."""
    assert value is not None
    assert value.name is not None
    return value.name


def _place_for_tensorrt(graph: ir.Graph) -> tuple[QuantizedEdge, ...]:
    """Return the edges to layers with weights, to poolings, and from shortcuts to additions.

    A maximum over whole maps stays float, like the average beside it in the head.
    The shortcut is the operand with the shorter path. The other operand of an addition stays float:
    its convolution, the addition and the ReLU are fused into one kernel, which rounds at its end.
    """
    depth: dict[str, int] = {}  # length of the longest path from the input to each node, in nodes
    quantised: set[tuple[str, int]] = set()
    for node in graph:
        depths = [depth[node_name(producer)] for producer in node.predecessors()]
        depth[node_name(node)] = 1 + max(depths, default=0)
        if node.op_type in WEIGHTED or (node.op_type == "MaxPool" and not _ends_in_head(node)):
            quantised.add((node_name(node), 0))
        elif is_residual_add(node):
            quantised.add((node_name(node), depths.index(min(depths))))
    return _edges(graph, quantised)


def _ends_in_head(pooling: ir.Node) -> bool:
    return any(reader.op_type == "Flatten" for reader in pooling.successors())


def _place_everywhere(graph: ir.Graph) -> tuple[QuantizedEdge, ...]:
    """Return every edge of a node in integers, except those between a node and its ReLU.

    Nodes without an integer kernel stay float. What they read is quantised if a kernel in integers
    computes it, and what they compute if one reads it.
    """
    quantised: set[tuple[str, int]] = set()
    reached: set[str] = set()  # layers with weights, and the nodes that depend on them
    integer: set[str] = set()  # nodes whose outputs are quantised
    for node in graph:
        if node.op_type in WEIGHTED or any(
            node_name(producer) in reached for producer in node.predecessors()
        ):
            name = node_name(node)
            reached.add(name)
            has_kernel = node.op_type in INTEGER_ON_CPU or is_residual_add(node)
            if has_kernel:
                integer.add(name)
            for index, value in enumerate(node.inputs):
                producer = value.producer() if is_activation(value) else None
                if producer is None or value is None:
                    continue
                is_integer = node_name(producer) in integer
                if node.op_type in LIMITS and len(value.uses()) == 1:
                    if is_integer:
                        integer.add(name)
                elif has_kernel or is_integer:
                    quantised.add((name, index))
    return _edges(graph, quantised)


def _edges(graph: ir.Graph, quantised: set[tuple[str, int]]) -> tuple[QuantizedEdge, ...]:
    edges: list[QuantizedEdge] = []
    range_of: dict[str, str] = {}
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        name = value_name(value)
        producer = value.producer()
        source = name
        if producer is not None and producer.op_type in SAME_GRID:
            source = range_of.get(value_name(producer.inputs[0]), name)
        uses = [(node_name(use.node), use.idx) for use in value.uses()]
        readers = tuple(use for use in uses if use in quantised)
        if readers:
            range_of[name] = source
            edges.append(QuantizedEdge(name, source, readers))
    return tuple(edges)
