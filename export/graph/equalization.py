"""Cross-layer equalisation of a graph's channels, which keeps the outputs of the graph.

`calibration.equalization_factors` computes the factors. This module finds the tensors whose
channels must share factors, and scales the weights that compute and read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from resdeploy.export.graph.placement import WEIGHTED, is_activation, is_residual_add, value_name

# Operators with f(c x) = c f(x) for each channel and every factor c > 0.
HOMOGENEOUS = ("Relu", "MaxPool", "GlobalAveragePool")


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Tensors whose channels can only be scaled together, for example a residual stream."""

    tensors: tuple[str, ...]
    writers: tuple[str, ...]
    """Convolutions that compute one of the tensors."""
    readers: tuple[str, ...]
    """Convolutions and classifiers that read one of the tensors."""


def channel_groups(graph: ir.Graph) -> tuple[ChannelGroup, ...]:
    """Return every group that can be scaled, in the order of the graph.

    Only layers with weights, residual additions and `HOMOGENEOUS` nodes may read or compute the
    tensors of a group. So groups with an input or output of the graph, or with a tensor of another
    node, are left out; such nodes are the padding of a shortcut and the concatenation of poolings.
    """
    parents: dict[str, str] = {}  # union-find: the parent of each tensor; a root is its own parent
    fixed = {value_name(value) for value in (*graph.inputs, *graph.outputs)}
    writers: dict[str, str] = {}
    readers: dict[str, list[str]] = {}

    def root(tensor: str) -> str:
        while parents.setdefault(tensor, tensor) != tensor:
            tensor = parents[tensor]
        return tensor

    for node in graph:
        activations = [value_name(value) for value in node.inputs if is_activation(value)]
        outputs = [value_name(value) for value in node.outputs]
        if node.op_type in WEIGHTED:
            writers[outputs[0]] = str(node.name)
            readers.setdefault(activations[0], []).append(str(node.name))
        elif node.op_type in HOMOGENEOUS or is_residual_add(node) or _drops_axes(node):
            for tensor in activations:
                parents[root(tensor)] = root(outputs[0])
        else:
            fixed.update(activations, outputs)
    members: dict[str, list[str]] = {}
    for tensor in dict.fromkeys([*writers, *readers, *parents]):
        members.setdefault(root(tensor), []).append(tensor)
    blocked = {root(tensor) for tensor in fixed}
    return tuple(
        ChannelGroup(
            tuple(tensors),
            tuple(writers[tensor] for tensor in tensors if tensor in writers),
            tuple(reader for tensor in tensors for reader in readers.get(tensor, ())),
        )
        for group_root, tensors in members.items()
        if group_root not in blocked
    )


def equalize(model: ir.Model, factors: Mapping[ChannelGroup, npt.NDArray[np.float32]]) -> ir.Model:
    """Return a copy in which the channels of each group are divided by its factors (C,).

    The outputs of the graph change only by the rounding of the weights to float32.
    """
    scaled = model.clone()
    nodes = {str(node.name): node for node in scaled.graph}
    products: dict[str, npt.NDArray[np.float64]] = {}  # by weight; rounded after the last factor

    def multiply(value: ir.Value | None, factor: npt.NDArray[np.float64]) -> None:
        """Multiply with a factor whose axes are the first ones of the value."""
        if value is None:
            return
        assert value.const_value is not None
        exact = products.get(value_name(value), value.const_value.numpy().astype(np.float64))
        shape = factor.shape + (1,) * (exact.ndim - factor.ndim)
        products[value_name(value)] = exact * factor.reshape(shape)

    for group, factor in factors.items():
        divisors = factor.astype(np.float64)
        for writer in group.writers:
            for value in nodes[writer].inputs[1:]:  # weight (C, ...) and bias (C,)
                multiply(value, 1 / divisors)
        for reader in group.readers:  # weight (K, C / groups, ...): a group of inputs per output
            weight = nodes[reader].inputs[1]
            assert weight is not None
            assert weight.shape is not None
            groups = nodes[reader].attributes.get_int("group", 1)
            rows = np.repeat(
                divisors.reshape(groups, -1), weight.shape.numpy()[0] // groups, axis=0
            )
            multiply(weight, rows)
    for name, product in products.items():
        scaled.graph.initializers[name].const_value = ir.tensor(
            product.astype(np.float32), name=name
        )
    return scaled


def _drops_axes(node: ir.Node) -> bool:
    """Return True if the node only removes the axes of a pooled tensor: (N, C, 1, 1) -> (N, C)."""
    value = node.inputs[0] if node.inputs else None
    if node.op_type != "Flatten" or value is None or value.shape is None:
        return False
    return all(size == 1 for size in value.shape[2:])
