"""Insertion of QuantizeLinear and DequantizeLinear (Q/DQ) nodes into a graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Encoding
from resdeploy.calibration.ranges import Range
from resdeploy.calibration.scales import (
    QuantizationParameters,
    asymmetric_parameters,
    quantize_bias,
    quantize_weight,
    symmetric_parameters,
)
from resdeploy.export.graph.placement import WEIGHTED, QuantizedEdge, value_name
from resdeploy.export.graph.residual_scales import align_scales

Weights = Mapping[str, tuple[npt.NDArray[np.int8], Float32Array]]
"""Integers and their scales, by name of the weight."""


def integer_weights(model: ir.Model, encoding: Encoding) -> Weights:
    """Return the quantised weights of all convolutions and classifiers for `encoding`."""
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

    For TensorRT and DLA, activations and weights are symmetric int8 with scales that are float16
    values, and biases stay float, because TensorRT's parser rejects integer biases. For CPUs,
    activations are uint8 with a zero point, weights int8, and biases int32. Weights are stored as
    integers.

    Args:
        model: FP32 graph, modified in place.
        edges: Edges from `placement.place` with the same encoding.
        ranges: Range of every `range_of` in `edges`.
        encoding: TENSORRT, CPU or DLA.
        in_float: Names of nodes whose weights stay float although the nodes read INT8 tensors.
        weights: Result of `integer_weights`, to save time for many graphs of one network.
    """
    graph = model.graph
    nodes = {node.name: node for node in graph}
    values = ir.convenience.create_value_mapping(graph)
    on_cpu = encoding is Encoding.CPU
    input_scales: dict[str, np.float32] = {}  # by node whose first input is quantised
    parameters = activation_parameters(graph, edges, ranges, encoding)
    for edge in edges:
        chosen = parameters[edge.range_of]
        dequantized = _quantize_activation(graph, values[edge.tensor], chosen, on_cpu=on_cpu)
        for reader, index in edge.readers:
            nodes[reader].replace_input_with(index, dequantized)
            if index == 0:
                input_scales[reader] = chosen.scale
    for name, scale in input_scales.items():
        if nodes[name].op_type in WEIGHTED and name not in in_float:
            _quantize_weights(graph, nodes[name], scale, weights or {}, on_cpu=on_cpu)


def activation_parameters(
    graph: ir.Graph, edges: Sequence[QuantizedEdge], ranges: Mapping[str, Range], encoding: Encoding
) -> dict[str, QuantizationParameters]:
    """Return scales and zero points by `range_of`; those for CPUs are aligned by `align_scales`."""
    chosen = {edge.range_of: ranges[edge.range_of] for edge in edges}
    if encoding is not Encoding.CPU:
        return {name: symmetric_parameters(span, half=True) for name, span in chosen.items()}
    parameters = {name: asymmetric_parameters(span) for name, span in chosen.items()}
    return align_scales(graph, edges, parameters)


def _quantize_activation(
    graph: ir.Graph, value: ir.Value, parameters: QuantizationParameters, *, on_cpu: bool
) -> ir.Value:
    name, dtype = value_name(value), np.uint8 if on_cpu else np.int8
    scale = _constant(graph, f"{name}.scale", np.array(parameters.scale, dtype=np.float32))
    zero = _constant(graph, f"{name}.zero_point", np.array(parameters.zero_point, dtype=dtype))
    quantized = ir.val(f"{name}.quantized", zero.dtype, value.shape)
    quantize = ir.node(
        "QuantizeLinear", [value, scale, zero], outputs=[quantized], name=f"{name}.quantize"
    )
    dequantize = _dequantize(quantized, scale, zero, name=name)
    producer = value.producer()
    assert producer is not None  # the input of the graph is uint8 and is never quantised
    graph.insert_after(producer, [quantize, dequantize])
    return dequantize.outputs[0]


def _quantize_weights(
    graph: ir.Graph, node: ir.Node, input_scale: np.float32, weights: Weights, *, on_cpu: bool
) -> None:
    name, exact = _pop_initializer(graph, node.inputs[1])
    integers, scales = weights.get(name) or quantize_weight(exact, half=not on_cpu)
    dequantized = [_dequantized_constant(graph, name, integers, scales)]
    if on_cpu and len(node.inputs) > 2 and node.inputs[2] is not None:
        name, bias = _pop_initializer(graph, node.inputs[2])
        integers_and_scales = quantize_bias(bias, input_scale, scales)
        dequantized.append(_dequantized_constant(graph, name, *integers_and_scales))
    for index, dequantize in enumerate(dequantized, start=1):
        graph.insert_before(node, dequantize)
        node.replace_input_with(index, dequantize.outputs[0])


def _dequantized_constant(
    graph: ir.Graph, name: str, integers: npt.NDArray[np.integer], scales: npt.NDArray[np.float32]
) -> ir.Node:
    """Store integers with one scale per index of axis 0, and return their DequantizeLinear node."""
    stored = _constant(graph, f"{name}.quantized", integers)
    scale = _constant(graph, f"{name}.scale", scales)
    zero = _constant(graph, f"{name}.zero_point", np.zeros(len(scales), dtype=integers.dtype))
    return _dequantize(stored, scale, zero, name=name, axis=0)


def _dequantize(
    value: ir.Value, scale: ir.Value, zero: ir.Value, *, name: str, axis: int | None = None
) -> ir.Node:
    attributes = {} if axis is None else {"axis": axis}
    output = ir.val(f"{name}.dequantized", scale.dtype, value.shape)
    return ir.node(
        "DequantizeLinear", [value, scale, zero], attributes, outputs=[output],
        name=f"{name}.dequantize",
    )  # fmt: skip


def _constant(graph: ir.Graph, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def _pop_initializer(graph: ir.Graph, value: ir.Value | None) -> tuple[str, Float32Array]:
    """Remove an initialiser from the graph, and return its name and its values."""
    name = value_name(value)
    tensor = graph.initializers.pop(name).const_value
    assert tensor is not None
    return name, tensor.numpy().astype(np.float32)
