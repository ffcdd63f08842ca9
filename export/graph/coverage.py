"""Prediction of the nodes that an engine runs with integer kernels, from an INT8 graph alone.

Sources: NVIDIA, "TensorRT Developer Guide", section "Explicit Quantization": a convolution between
DequantizeLinear and QuantizeLinear is an INT8 kernel; a following addition and ReLU are fused into
it if the other operand of the addition is INT8 too. ONNX Runtime's QDQ selectors: on a CPU, a node
is an integer kernel if all of its inputs and outputs are quantised.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from resdeploy.bundle.manifest import Encoding
from resdeploy.export.graph.placement import (
    LIMITS,
    QDQ,
    SAME_GRID,
    WEIGHTED,
    is_residual_add,
    node_name,
)

# Float operators whose results are the same on every processor: they move values, or round a single
# operation of IEEE 754. Sums depend on their order, and functions such as Sigmoid on the library.
EXACT = (
    *SAME_GRID, *LIMITS, "Abs", "Add", "Cast", "Concat", "DepthToSpace", "Div", "Gather", "Max",
    "Min", "Mul", "Neg", "PRelu", "ReduceMax", "ReduceMin", "Slice", "SpaceToDepth", "Squeeze",
    "Sub", "Unsqueeze",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatRegion:
    """Connected nodes that run in float."""

    nodes: tuple[str, ...]
    """Names of the nodes in the order of the graph."""
    dtype: str
    """Type of the last node's output, `float32` or `float16`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Numbers of nodes that run in integers, and the regions that run in float."""

    convs: int
    int8_convs: int
    additions: int
    """Number of residual additions."""
    fused_additions: int
    """Number of residual additions in integers (in TensorRT: in the kernel of a convolution)."""
    float_regions: tuple[FloatRegion, ...]


def coverage(graph: ir.Graph, encoding: Encoding) -> Coverage:
    """Predict the nodes of an INT8 graph of `encoding` that run in integers and in float."""
    integer = {node_name(node) for node in graph if _is_integer(node, encoding)}
    if encoding is Encoding.TENSORRT:
        for node in graph:
            if is_residual_add(node) and _fuses_with_convolution(node, integer):
                integer.add(node_name(node))
    # A ReLU is fused into the kernel before it; poolings and reshapes keep the type of their input.
    for node in graph:
        if node.op_type in (*LIMITS, *SAME_GRID) and (
            _has_int8_input(node, 0)
            or any(
                node_name(p) in integer and (node.op_type in LIMITS or p.op_type in SAME_GRID)
                for p in node.predecessors()
            )
        ):
            integer.add(node_name(node))
    convs = [node for node in graph if node.op_type == "Conv"]
    additions = [node for node in graph if is_residual_add(node)]
    return Coverage(
        convs=len(convs),
        int8_convs=sum(node_name(node) in integer for node in convs),
        additions=len(additions),
        fused_additions=sum(node_name(node) in integer for node in additions),
        float_regions=tuple(_float_regions(graph, integer)),
    )


def inexact_nodes(graph: ir.Graph, encoding: Encoding) -> dict[str, str]:
    """Return the operators of the float nodes whose results depend on the processor, by name."""
    in_float = {name for region in coverage(graph, encoding).float_regions for name in region.nodes}
    return {
        node_name(node): node.op_type
        for node in graph
        if node_name(node) in in_float and node.op_type not in EXACT
    }


def _is_integer(node: ir.Node, encoding: Encoding) -> bool:
    if node.op_type in WEIGHTED:
        has_int8_inputs = _has_int8_input(node, 0) and _has_int8_input(node, 1)
    elif encoding is not Encoding.TENSORRT and (
        is_residual_add(node) or node.op_type in ("AveragePool", "GlobalAveragePool", "Concat")
    ):
        has_int8_inputs = all(_has_int8_input(node, index) for index in range(len(node.inputs)))
    else:
        return False
    return has_int8_inputs and (encoding is Encoding.TENSORRT or _has_int8_output(node))


def _fuses_with_convolution(addition: ir.Node, integer: set[str]) -> bool:
    """Return True if the kernel of an INT8 convolution can also compute the addition.

    Nothing else may read the output of the convolution, and the other operand must be INT8.
    """
    for index, value in enumerate(addition.inputs):
        if value is None or (producer := value.producer()) is None:
            continue
        is_int8_conv = producer.op_type == "Conv" and node_name(producer) in integer
        if is_int8_conv and len(value.uses()) == 1 and _has_int8_input(addition, 1 - index):
            return True
    return False


def _has_int8_input(node: ir.Node, index: int) -> bool:
    value = node.inputs[index] if index < len(node.inputs) else None
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _has_int8_output(node: ir.Node) -> bool:
    """Return True if all readers, or those of a following ReLU, are QuantizeLinear nodes.

    The output of the graph has no readers: a node that computes it counts as quantised.
    """
    readers = node.successors()
    if len(readers) == 1 and readers[0].op_type in LIMITS:
        return _has_int8_output(readers[0])
    return all(reader.op_type == "QuantizeLinear" for reader in readers)


def _float_regions(graph: ir.Graph, integer: set[str]) -> Iterator[FloatRegion]:
    """Yield the connected components of the float nodes, in the order of the graph."""
    remaining = {
        node_name(node): node
        for node in graph
        if node_name(node) not in integer and node.op_type not in QDQ
    }
    while remaining:
        region, pending = [], [remaining.pop(next(iter(remaining)))]
        while pending:
            node = pending.pop()
            region.append(node)
            neighbours = (*node.predecessors(), *node.successors())
            pending.extend(n for n in neighbours if remaining.pop(node_name(n), None))
        ordered = [node for node in graph if node in region]
        dtype = ordered[-1].outputs[0].dtype
        yield FloatRegion(
            nodes=tuple(node_name(node) for node in ordered),
            dtype="float16" if dtype is ir.DataType.FLOAT16 else "float32",
        )
