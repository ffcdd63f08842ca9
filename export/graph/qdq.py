"""Writing quantisation into a graph as QuantizeLinear and DequantizeLinear nodes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Encoding
from resdeploy.calibration.ranges import Range
from resdeploy.calibration.scales import (
    Affine,
    asymmetric,
    quantize_bias,
    quantize_weight,
    symmetric,
)
from resdeploy.export.graph.placement import WEIGHTED, QuantizedEdge
from resdeploy.export.graph.residual_scales import agree

Weights = Mapping[str, tuple[npt.NDArray[np.int8], Float32Array]]
"""Integers and their scales, by the weight's name."""


def integer_weights(model: ir.Model, encoding: Encoding) -> Weights:
    """The weights of all convolutions and classifiers as `encoding` holds them."""
    weights = {}
    for node in model.graph:
        if node.op_type in WEIGHTED and (weight := node.inputs[1]) is not None:
            assert weight.name is not None
            assert weight.const_value is not None
            exact = weight.const_value.numpy().astype(np.float32)
            weights[weight.name] = quantize_weight(exact, half=encoding is not Encoding.CPU)
    return weights


def insert_qdq(
    model: ir.Model,
    edges: Sequence[QuantizedEdge],
    ranges: Mapping[str, Range],
    encoding: Encoding,
    *,
    in_float: Collection[str] = (),
    weights: Weights | None = None,
) -> None:
    """Quantise `edges`, and the weights of every convolution and classifier that reads one.

    TensorRT, DLA: activations and weights int8, symmetric, scales that a float16 holds exactly;
    biases float, for its parser refuses integers there. CPU: activations uint8 with a zero point,
    weights int8, biases int32. Weights are stored as integers.

    Args:
        model: An FP32 graph; it is changed in place.
        edges: From `placement.place`, for the same encoding.
        ranges: For every `range_of` in `edges`.
        encoding: TENSORRT, CPU or DLA.
        in_float: Names of nodes whose weights stay float though they read an edge.
        weights: From `integer_weights`, where many graphs are made of one network.
    """
    graph = model.graph
    nodes = {node.name: node for node in graph}
    values = {value.name: value for node in graph for value in node.outputs}
    on_cpu = encoding is Encoding.CPU
    affine_of: dict[str, Affine] = {}  # by node that reads the quantised tensor first
    scales = activation_scales(graph, edges, ranges, encoding)
    for edge in edges:
        affine = scales[edge.range_of]
        dequantized = _quantize_activation(graph, values[edge.tensor], affine, on_cpu=on_cpu)
        for reader, index in edge.readers:
            nodes[reader].replace_input_with(index, dequantized)
            if index == 0:
                affine_of[reader] = affine
    for name, affine in affine_of.items():
        if nodes[name].op_type in WEIGHTED and name not in in_float:
            _quantize_weights(graph, nodes[name], affine, weights or {}, on_cpu=on_cpu)


def activation_scales(
    graph: ir.Graph,
    edges: Sequence[QuantizedEdge],
    ranges: Mapping[str, Range],
    encoding: Encoding,
) -> dict[str, Affine]:
    """Scales and zero points, by `range_of`; for CPUs such that additions round alike on all."""
    chosen = {edge.range_of: ranges[edge.range_of] for edge in edges}
    if encoding is not Encoding.CPU:
        return {name: symmetric(ends, half=True) for name, ends in chosen.items()}
    return agree(graph, edges, {name: asymmetric(ends) for name, ends in chosen.items()})


def _quantize_activation(
    graph: ir.Graph, value: ir.Value, affine: Affine, *, on_cpu: bool
) -> ir.Value:
    name = value.name
    grid = np.uint8 if on_cpu else np.int8
    scale = _constant(graph, f"{name}.scale", np.array(affine.scale, dtype=np.float32))
    zero = _constant(graph, f"{name}.zero_point", np.array(affine.zero_point, dtype=grid))
    quantize = ir.node(
        "QuantizeLinear", [value, scale, zero], name=f"{name}.quantize", num_outputs=1
    )
    quantize.outputs[0].name = f"{name}.quantized"
    quantize.outputs[0].type = zero.type
    quantize.outputs[0].shape = value.shape
    dequantize = _dequantize(quantize.outputs[0], scale, zero, name=str(name))
    producer = value.producer()
    assert producer is not None  # the graph's own input is never quantised: it is uint8
    graph.insert_after(producer, [quantize, dequantize])
    return dequantize.outputs[0]


def _quantize_weights(
    graph: ir.Graph, node: ir.Node, affine: Affine, weights: Weights, *, on_cpu: bool
) -> None:
    weight = node.inputs[1]
    assert weight is not None
    assert weight.name is not None
    exact = _take(graph, weight)
    integers, scales = weights.get(weight.name) or quantize_weight(exact, half=not on_cpu)
    dequantized = [_dequantized_constant(graph, str(weight.name), integers, scales)]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if on_cpu and bias is not None:
        bias_integers, bias_scales = quantize_bias(_take(graph, bias), affine.scale, scales)
        dequantized.append(_dequantized_constant(graph, str(bias.name), bias_integers, bias_scales))
    for index, dequantize in enumerate(dequantized, start=1):
        graph.insert_before(node, dequantize)
        node.replace_input_with(index, dequantize.outputs[0])


def _dequantized_constant(
    graph: ir.Graph,
    name: str,
    integers: npt.NDArray[np.integer],
    scales: npt.NDArray[np.float32],
) -> ir.Node:
    """A node that turns stored integers back to floats, one scale per index of axis 0."""
    stored = _constant(graph, f"{name}.quantized", integers)
    scale = _constant(graph, f"{name}.scale", scales)
    zero = _constant(graph, f"{name}.zero_point", np.zeros(len(scales), dtype=integers.dtype))
    return _dequantize(stored, scale, zero, name=name, axis=0)


def _dequantize(
    value: ir.Value, scale: ir.Value, zero: ir.Value, *, name: str, axis: int | None = None
) -> ir.Node:
    attributes = {} if axis is None else {"axis": axis}
    node = ir.node("DequantizeLinear", [value, scale, zero], attributes, name=f"{name}.dequantize")
    node.outputs[0].name = f"{name}.dequantized"
    node.outputs[0].type = scale.type
    node.outputs[0].shape = value.shape
    return node


def _constant(graph: ir.Graph, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(array, name=name),
    )
    graph.initializers.add(value)
    return value


def _take(graph: ir.Graph, value: ir.Value) -> npt.NDArray[np.float32]:
    """An initialiser's numbers; the initialiser itself leaves the graph."""
    assert value.name is not None
    assert value.const_value is not None
    array = value.const_value.numpy()
    graph.initializers.pop(value.name)
    return array.astype(np.float32)
