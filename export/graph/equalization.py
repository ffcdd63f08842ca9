"""Scaling a graph's channels against each other without changing its answers.

`calibration.equalization` says by how much; here is which channels must go together, and which
weights to change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from resdeploy.export.graph.placement import WEIGHTED, is_residual_add

# They give each channel times a factor where they are given it times that factor, if it is > 0.
HOMOGENEOUS = ("Relu", "MaxPool", "GlobalAveragePool")


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Tensors whose channels can only be scaled together: a residual stream, for example."""

    tensors: tuple[str, ...]
    writers: tuple[str, ...]
    """Convolutions that give one of the tensors."""
    readers: tuple[str, ...]
    """Convolutions and classifiers that read one."""


def channel_groups(graph: ir.Graph) -> tuple[ChannelGroup, ...]:
    """Every group that can be scaled, in the order of the graph.

    A group is left out where something else than weights, additions and `HOMOGENEOUS` nodes
    touches it: the pixels, the logits, a shortcut that pads channels.
    """
    joined: dict[str, str] = {}  # a tensor, and one that it goes with; a root goes with itself
    fixed = {_name(value) for value in (*graph.inputs, *graph.outputs)}
    writers: dict[str, str] = {}
    readers: dict[str, list[str]] = {}

    def root(tensor: str) -> str:
        while joined.setdefault(tensor, tensor) != tensor:
            tensor = joined[tensor]
        return tensor

    for node in graph:
        activations = [
            _name(value)
            for value in node.inputs
            if value is not None and not value.is_initializer()
        ]
        outputs = [_name(value) for value in node.outputs]
        if node.op_type in WEIGHTED and _is_dense(node):
            writers[outputs[0]] = str(node.name)
            readers.setdefault(activations[0], []).append(str(node.name))
        elif node.op_type in HOMOGENEOUS or is_residual_add(node) or _drops_axes(node):
            for tensor in activations:
                joined[root(tensor)] = root(outputs[0])
        else:
            fixed.update(activations, outputs)
    members: dict[str, list[str]] = {}
    for tensor in dict.fromkeys([*writers, *readers, *joined]):
        members.setdefault(root(tensor), []).append(tensor)
    blocked = {root(tensor) for tensor in fixed}
    return tuple(
        ChannelGroup(
            tuple(tensors),
            tuple(writers[tensor] for tensor in tensors if tensor in writers),
            tuple(reader for tensor in tensors for reader in readers.get(tensor, ())),
        )
        for first, tensors in members.items()
        if first not in blocked
    )


def equalize(model: ir.Model, factors: Mapping[ChannelGroup, npt.NDArray[np.float32]]) -> ir.Model:
    """A copy whose groups' channels are divided by `factors` (C,), and whose answers are the same.

    They differ by the rounding of weights to float32 alone.
    """
    scaled = model.clone()
    nodes = {str(node.name): node for node in scaled.graph}
    products: dict[str, npt.NDArray[np.float64]] = {}  # by weight: all factors at once, then round

    def multiply(value: ir.Value | None, factor: npt.NDArray[np.float64], axis: int) -> None:
        if value is None:
            return
        assert value.const_value is not None
        exact = products.get(_name(value), value.const_value.numpy().astype(np.float64))
        shape = [1] * exact.ndim
        shape[axis] = -1
        products[_name(value)] = exact * factor.reshape(shape)

    for group, divisors in factors.items():
        exact = divisors.astype(np.float64)
        for writer in group.writers:
            for value in nodes[writer].inputs[1:]:  # weight (C, ...) and bias (C,)
                multiply(value, 1 / exact, axis=0)
        for reader in group.readers:
            multiply(nodes[reader].inputs[1], exact, axis=1)  # weight (K, C, ...)
    for name, product in products.items():
        scaled.graph.initializers[name].const_value = ir.tensor(
            product.astype(np.float32), name=name
        )
    return scaled


def _is_dense(node: ir.Node) -> bool:
    """Whether every channel that it gives reads every channel that it is given."""
    group = node.attributes.get("group")
    return group is None or group.as_int() == 1


def _drops_axes(node: ir.Node) -> bool:
    """Whether it only takes away the axes of a pooled tensor: (N, C, 1, 1) -> (N, C)."""
    value = node.inputs[0] if node.inputs else None
    if node.op_type != "Flatten" or value is None or value.shape is None:
        return False
    return all(size == 1 for size in value.shape[2:])


def _name(value: ir.Value) -> str:
    assert value.name is not None
    return value.name
