"""Which quantised edges a layer gives back when it returns to float, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from resdeploy.bundle.manifest import Encoding
from resdeploy.export.graph.placement import SAME_GRID, WEIGHTED, QuantizedEdge, is_residual_add

# How many products (MACs) take as long as an element of a shortcut that stays float. Only the ratio
# matters, and it need not be exact. A Jetson Orin moves an element about five bytes further
# (written and read in float16, and quantised apart), at 204.8 GB/s and 42.5 T products a second in
# INT8, half of them in FP16 (NVIDIA, Jetson AGX Orin series data sheet). Of a CPU it was measured:
# two cores of a Xeon with VNNI, at 32 pixels.
PRODUCTS_PER_ELEMENT = {Encoding.TENSORRT: 1000, Encoding.DLA: 1000, Encoding.CPU: 150}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What can be handed back to float as a whole."""

    name: str
    """The node's; for several nodes the first one's."""
    kind: str
    """`convolution`, `classifier` or `shortcut`."""
    nodes: frozenset[str]
    cost: int
    """Products (MACs) of one image that are no longer in INT8, or what takes as long."""


def layers_of(model: ir.Model, encoding: Encoding) -> tuple[Layer, ...]:
    """Every layer that can be handed back, in the order of the graph.

    A CPU adds in integers only what comes and goes in integers, so there the shortcuts of a stage
    are one layer: one alone would gain nothing.
    """
    layers: list[Layer] = []
    shortcuts: dict[str, Layer] = {}  # by the addition that ends it
    for node in model.graph:
        name = _name(node)
        if node.op_type in WEIGHTED:
            kind = "convolution" if node.op_type == "Conv" else "classifier"
            nodes = frozenset([name, *_head(node)] if kind == "classifier" else [name])
            layers.append(Layer(name=name, kind=kind, nodes=nodes, cost=products(node)))
        elif is_residual_add(node):
            cost = PRODUCTS_PER_ELEMENT[encoding] * _elements(node.outputs[0])
            layer = Layer(name=name, kind="shortcut", nodes=frozenset([name]), cost=cost)
            before = [_unit(value) for value in node.inputs]
            earlier = next((shortcuts[unit] for unit in before if unit in shortcuts), None)
            if encoding is Encoding.CPU and earlier is not None:
                layers.remove(earlier)
                joined = earlier.nodes | layer.nodes
                layer = replace(earlier, nodes=joined, cost=earlier.cost + cost)
            layers.append(layer)
            shortcuts |= dict.fromkeys(layer.nodes, layer)
    return tuple(layers)


def nodes_of(layers: Collection[Layer]) -> frozenset[str]:
    """All nodes of these layers."""
    return frozenset(node for layer in layers for node in layer.nodes)


def keep_in_float(
    model: ir.Model,
    edges: Sequence[QuantizedEdge],
    nodes: Collection[str],
    encoding: Encoding,
) -> tuple[QuantizedEdge, ...]:
    """`edges` without those that only `nodes`, now float, would read.

    The neighbours keep what they fuse with: a CPU's convolution is integer only when all that it
    gives is quantised, so there an edge from a layer in integers stays. A pooling gives what it
    reads, and follows those that read it, also behind a padding.
    """
    given_back = set(nodes)
    by_name = {_name(node): node for node in model.graph}
    producers = {value.name: value for node in model.graph for value in node.outputs}
    quantised = {reader for edge in edges for reader in edge.readers}

    def readers_of(value: ir.Value) -> Iterator[tuple[str, int]]:
        for node, index in value.uses():
            if node.op_type in SAME_GRID and (_name(node), index) not in quantised:
                yield from readers_of(node.outputs[0])
            else:
                yield _name(node), index

    def stays(edge: QuantizedEdge, reader: tuple[str, int]) -> bool:
        node = by_name[reader[0]]
        if node.op_type in SAME_GRID and reader[0] not in given_back:
            return all(use in kept or use not in quantised for use in readers_of(node.outputs[0]))
        if reader[0] not in given_back:
            return True
        source = _unit(producers[edge.tensor])
        return encoding is Encoding.CPU and source is not None and source not in given_back

    kept: set[tuple[str, int]] = set()
    for edge in reversed(edges):  # a pooling's readers come behind it
        kept |= {reader for reader in edge.readers if stays(edge, reader)}
    left = [
        replace(edge, readers=tuple(reader for reader in edge.readers if reader in kept))
        for edge in edges
    ]
    return tuple(edge for edge in left if edge.readers)


def products(node: ir.Node) -> int:
    """Multiply-accumulates of a convolution or matrix product for one image."""
    weight = node.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    outputs, *rest = weight.shape.numpy()
    return _elements(node.outputs[0]) // outputs * outputs * math.prod(rest)


def conv_share(model: ir.Model, nodes: Collection[str]) -> tuple[int, float]:
    """How many of `nodes` are convolutions, and their share of all convolutions' products."""
    costs = {_name(node): products(node) for node in model.graph if node.op_type == "Conv"}
    mine = [cost for name, cost in costs.items() if name in nodes]
    return len(mine), sum(mine) / sum(costs.values())


def _head(classifier: ir.Node) -> list[str]:
    """What stands between the last addition or convolution and the classifier."""
    names = []
    value = classifier.inputs[0]
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in (*WEIGHTED, "Add", "Relu", "MaxPool"):
            break
        names.append(_name(node))
        value = node.inputs[0]
    return names


def _unit(value: ir.Value | None) -> str | None:
    """The convolution or addition whose result `value` is, behind ReLU and what keeps the grid."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in WEIGHTED or is_residual_add(node):
            return _name(node)
        if node.op_type not in (*SAME_GRID, "Relu"):
            return None
        value = node.inputs[0]
    return None


def _elements(value: ir.Value) -> int:
    """Of one image's tensor: the batch axis is left out."""
    assert value.shape is not None
    return math.prod(int(size) for size in value.shape[1:] if isinstance(size, int))


def _name(node: ir.Node) -> str:
    assert node.name is not None
    return node.name
