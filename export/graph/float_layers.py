"""Layers that can be kept in float, their costs, and the edges that remain quantised."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from resdeploy.bundle.manifest import Encoding
from resdeploy.export.graph.placement import (
    LIMITS,
    SAME_GRID,
    WEIGHTED,
    QuantizedEdge,
    is_residual_add,
    node_name,
)

# Number of multiply-accumulates that take as long as one element of a shortcut in float. A rough
# value is enough. For a Jetson Orin: a float16 element moves about five more bytes (it is written,
# read and quantised separately) at 204.8 GB/s and 42.5 T multiply-accumulates per second in INT8,
# half of that in FP16 (NVIDIA, Jetson AGX Orin series data sheet). For CPUs: measured on two cores
# of a Xeon with VNNI, at 32 pixels.
MACS_PER_ELEMENT = {Encoding.TENSORRT: 1000, Encoding.DLA: 1000, Encoding.CPU: 150}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Group of nodes that are kept in float, or quantised, together."""

    name: str
    """Name of the node, or of the first of several nodes."""
    kind: str
    """Kind of the layer: `convolution`, `classifier` or `shortcut`."""
    nodes: frozenset[str]
    cost: int
    """Multiply-accumulates of one image; for a shortcut, the number that takes as long."""


def layers_of(model: ir.Model, encoding: Encoding) -> tuple[Layer, ...]:
    """Return every layer that can be kept in float, in the order of the graph.

    On CPUs, an addition is an integer kernel only if its operands and its result are quantised.
    Therefore, all shortcuts of a stage form one layer there: a single one would gain nothing.
    """
    layers: list[Layer] = []
    shortcuts: dict[str, Layer] = {}  # by name of the addition
    for node in model.graph:
        name = node_name(node)
        if node.op_type in WEIGHTED:
            kind = "convolution" if node.op_type == "Conv" else "classifier"
            nodes = frozenset([name, *_classifier_head(node)] if kind == "classifier" else [name])
            layers.append(Layer(name=name, kind=kind, nodes=nodes, cost=macs(node)))
        elif is_residual_add(node):
            cost = MACS_PER_ELEMENT[encoding] * elements(node.outputs[0])
            layer = Layer(name=name, kind="shortcut", nodes=frozenset([name]), cost=cost)
            sources = [_source_layer(value) for value in node.inputs]
            earlier = next((shortcuts[source] for source in sources if source in shortcuts), None)
            if encoding is Encoding.CPU and earlier is not None:
                layers.remove(earlier)
                joined = earlier.nodes | layer.nodes
                layer = replace(earlier, nodes=joined, cost=earlier.cost + cost)
            layers.append(layer)
            shortcuts |= dict.fromkeys(layer.nodes, layer)
    return tuple(layers)


def nodes_of(layers: Collection[Layer]) -> frozenset[str]:
    """Return the names of all nodes of `layers`."""
    return frozenset(node for layer in layers for node in layer.nodes)


def keep_in_float(
    model: ir.Model, edges: Sequence[QuantizedEdge], nodes: Collection[str], encoding: Encoding
) -> tuple[QuantizedEdge, ...]:
    """Return `edges` without those readers that read float values if `nodes` run in float.

    On CPUs, an edge remains if its source is a layer in integers, which needs a quantised output
    to be an integer kernel. A pooling or padding is quantised only if all of its readers are.
    """
    in_float = set(nodes)
    by_name = {node_name(node): node for node in model.graph}
    values = ir.convenience.create_value_mapping(model.graph)
    quantised = {reader for edge in edges for reader in edge.readers}

    def readers_of(value: ir.Value) -> Iterator[tuple[str, int]]:
        for node, index in value.uses():
            if node.op_type in SAME_GRID and (node_name(node), index) not in quantised:
                yield from readers_of(node.outputs[0])
            else:
                yield node_name(node), index

    def is_kept(edge: QuantizedEdge, reader: tuple[str, int]) -> bool:
        node = by_name[reader[0]]
        if reader[0] in in_float:
            source = _source_layer(values[edge.tensor])
            return encoding is Encoding.CPU and source is not None and source not in in_float
        if node.op_type in SAME_GRID:
            return all(use in kept or use not in quantised for use in readers_of(node.outputs[0]))
        return True

    kept: set[tuple[str, int]] = set()
    for edge in reversed(edges):  # the readers of a pooling are decided before the pooling
        kept |= {reader for reader in edge.readers if is_kept(edge, reader)}
    remaining = [
        replace(edge, readers=tuple(reader for reader in edge.readers if reader in kept))
        for edge in edges
    ]
    return tuple(edge for edge in remaining if edge.readers)


def macs(node: ir.Node) -> int:
    """Return the multiply-accumulates of a convolution or matrix product for one image."""
    weight = node.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    outputs, *rest = weight.shape.numpy()
    return elements(node.outputs[0]) // outputs * outputs * math.prod(rest)


def elements(value: ir.Value | None, *, batch_axis: bool = True) -> int:
    """Return the number of elements of a tensor, per image if it has a batch axis."""
    assert value is not None
    assert value.shape is not None
    sizes = value.shape[1 if batch_axis else 0 :]
    numbers = [size for size in sizes if isinstance(size, int)]
    assert len(numbers) == len(sizes), f"{value.name} has a dynamic shape: {value.shape}"
    return math.prod(numbers)


def conv_share(model: ir.Model, nodes: Collection[str]) -> tuple[int, float]:
    """Return the number of convolutions in `nodes`, and their share of all convolutions' MACs."""
    costs = {node_name(node): macs(node) for node in model.graph if node.op_type == "Conv"}
    selected = [cost for name, cost in costs.items() if name in nodes]
    return len(selected), sum(selected) / sum(costs.values())


def _classifier_head(classifier: ir.Node) -> list[str]:
    """Return the names of the nodes between the last ReLU or layer and the classifier."""
    names = []
    pending = [*classifier.predecessors()]
    while pending:
        node = pending.pop()
        if node.op_type not in (*WEIGHTED, *LIMITS, "Add", "MaxPool"):
            names.append(node_name(node))
            pending.extend(node.predecessors())
    return names


def _source_layer(value: ir.Value | None) -> str | None:
    """Return the layer or addition that computes `value`, directly or before ReLUs and poolings."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in WEIGHTED or is_residual_add(node):
            return node_name(node)
        if node.op_type not in (*SAME_GRID, *LIMITS):
            return None
        value = node.inputs[0]
    return None
