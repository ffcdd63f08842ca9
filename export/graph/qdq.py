"""Insertion of QuantizeLinear and DequantizeLinear (Q/DQ) nodes into a graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Encoding
from resdeploy.calibration.ranges import Range
from resdeploy.calibration.scales import (
    INT8_MAX,
    UINT8_MAX,
    QuantizationParameters,
    asymmetric_parameters,
    quantize_bias,
    quantize_weight,
    symmetric_parameters,
)
from resdeploy.calibration.weight_rounding import clip_pairs
from resdeploy.export.graph.placement import WEIGHTED, QuantizedEdge, value_name
from resdeploy.export.graph.residual_scales import align_scales
from resdeploy.export.graph.saturation import pairs_of
from resdeploy.export.graph.space_to_depth import unpacked_kernel

QuantizedWeight = tuple[npt.NDArray[np.int8], Float32Array]
"""Integers (O, ...) and a scale for each output (O,)."""
Weights = Mapping[str, QuantizedWeight]
"""Quantised weights by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundedWeights:
    """Weights that were rounded on calibration images, and the biases that belong to them."""

    weights: Weights
    biases: Mapping[str, Float32Array]
    """Exact biases by name."""


def integer_weights(model: ir.Model, encoding: Encoding) -> Weights:
    """Return the quantised weights of all convolutions and classifiers for `encoding`.

    Each is rounded alone. On CPUs, no two of them saturate a kernel: see `saturation`.
    """
    return {
        value_name(node.inputs[1]): _integer_weight(node, encoding)
        for node in model.graph
        if node.op_type in WEIGHTED
    }


def _integer_weight(node: ir.Node, encoding: Encoding) -> QuantizedWeight:
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    exact = weight.const_value.numpy().astype(np.float32)
    if encoding is not Encoding.CPU:
        return quantize_weight(exact, half=True)
    integers, scales = clip_pairs(exact.reshape(len(exact), -1).astype(np.float64), pairs_of(node))
    return integers.reshape(exact.shape), scales


def stored_weights(exact: ir.Model, quantised: ir.Model) -> RoundedWeights:
    """Return the weights and biases that an INT8 graph holds, of the layers in integers.

    `exact` is the FP32 graph from which `quantised` was made.
    """
    stored = {
        name: value.const_value.numpy()
        for name, value in quantised.graph.initializers.items()
        if value.const_value is not None
    }
    weights, biases = {}, {}
    for node in exact.graph:
        if node.op_type not in WEIGHTED:
            continue
        weight, *bias = (value_name(value) for value in node.inputs[1:])
        integers, scales = stored.get(f"{weight}.quantized"), stored.get(f"{weight}.scale")
        if integers is None or scales is None:
            continue  # the layer is in float
        weights[weight] = unpacked_kernel(node, integers), scales.astype(np.float32)
        for name in bias:
            integers, scales = stored.get(f"{name}.quantized"), stored.get(f"{name}.scale")
            if integers is not None and scales is not None:
                biases[name] = (integers * scales.astype(np.float64)).astype(np.float32)
            elif name in stored:  # TensorRT's biases are in float
                biases[name] = stored[name].astype(np.float32)
    return RoundedWeights(weights=weights, biases=biases)


def insert_qdq(
    model: ir.Model,
    edges: Sequence[QuantizedEdge],
    ranges: Mapping[str, Range],
    encoding: Encoding,
    *,
    in_float: Collection[str] = (),
    weights: Weights | None = None,
    biases: Mapping[str, Float32Array] | None = None,
    parameters: Mapping[str, QuantizationParameters] | None = None,
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
        weights: Weights to take instead of those of `integer_weights`.
        biases: Biases to take instead of those of the graph.
        parameters: Scales and zero points to take instead of those for just these edges.
    """
    graph = model.graph
    on_cpu = encoding is Encoding.CPU
    input_scales: dict[str, np.float32] = {}  # by node whose first input is quantised
    parameters = parameters or activation_parameters(graph, edges, ranges, encoding)
    _drop_limits(graph, edges, parameters, UINT8_MAX if on_cpu else INT8_MAX)
    nodes = {node.name: node for node in graph}
    values = ir.convenience.create_value_mapping(graph)
    for edge in edges:
        chosen = parameters[edge.range_of]
        dequantized = _quantize_activation(graph, values[edge.tensor], chosen, on_cpu=on_cpu)
        for reader, index in edge.readers:
            nodes[reader].replace_input_with(index, dequantized)
            if index == 0:
                input_scales[reader] = chosen.scale
    for name, scale in input_scales.items():
        if nodes[name].op_type in WEIGHTED and name not in in_float:
            _quantize_weights(graph, nodes[name], scale, weights or {}, biases or {}, encoding)


def activation_parameters(
    graph: ir.Graph, edges: Sequence[QuantizedEdge], ranges: Mapping[str, Range], encoding: Encoding
) -> dict[str, QuantizationParameters]:
    """Return scales and zero points by `range_of`; those for CPUs are aligned by `align_scales`."""
    chosen = {edge.range_of: ranges[edge.range_of] for edge in edges}
    if encoding is not Encoding.CPU:
        return {name: symmetric_parameters(span, half=True) for name, span in chosen.items()}
    parameters = {name: asymmetric_parameters(span) for name, span in chosen.items()}
    return align_scales(graph, edges, parameters)


def _drop_limits(
    graph: ir.Graph,
    edges: Sequence[QuantizedEdge],
    parameters: Mapping[str, QuantizationParameters],
    largest: int,
) -> None:
    """Replace each `Clip` from 0 to a limit by a `Relu`, if rounding limits its output, too.

    The integers stay the same, because the limit is rounded to the `largest` one. Engines fuse a
    `Relu` into the kernel of a convolution; ONNX Runtime fuses a `Clip` only in some cases.
    """
    chosen = {edge.tensor: edge for edge in edges}
    for node in list(graph):
        edge = chosen.get(value_name(node.outputs[0])) if node.op_type == "Clip" else None
        if edge is None or len(edge.readers) < len(node.outputs[0].uses()):
            continue
        low, high = (value.const_value if value else None for value in node.inputs[1:3])
        if low is None or high is None or float(low.numpy()) != 0:
            continue
        grid = parameters[edge.range_of]
        if np.rint(float(high.numpy()) / float(grid.scale)) + grid.zero_point >= largest:
            relu = ir.node("Relu", [node.inputs[0]], name=node.name)
            output, new = node.outputs[0], relu.outputs[0]
            new.type, new.shape = output.type, output.shape
            graph.insert_before(node, relu)
            ir.convenience.replace_all_uses_with(output, new)
            graph.remove(node, safe=True)
            new.name = output.name


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
    graph: ir.Graph,
    node: ir.Node,
    input_scale: np.float32,
    weights: Weights,
    biases: Mapping[str, Float32Array],
    encoding: Encoding,
) -> None:
    name = value_name(node.inputs[1])
    integers, scales = weights.get(name) or _integer_weight(node, encoding)
    _pop_initializer(graph, node.inputs[1])
    dequantized = [_dequantized_constant(graph, name, integers, scales)]
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is not None and encoding is Encoding.CPU:
        name, bias = _pop_initializer(graph, value)
        integers_and_scales = quantize_bias(biases.get(name, bias), input_scale, scales)
        dequantized.append(_dequantized_constant(graph, name, *integers_and_scales))
    elif value is not None and (name := value_name(value)) in biases:
        value.const_value = ir.tensor(biases[name], name=name)
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
