"""Turning a graph to float16 behind its normalisation, which stays in FP32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from resdeploy.bundle.manifest import OUTPUT_NAME
from resdeploy.errors import ExportError

# Types are replaced, not changed: clones of a model share them.
HALF = ir.TensorType(ir.DataType.FLOAT16)
FLOAT16_MAX = float(np.finfo(np.float16).max)


def to_float16(model: ir.Model) -> None:
    """Convert weights, biases, scales and activations of `model` to float16, in place.

    The pixels are normalised in FP32 and rounded once; the logits are given as float32. Every
    tensor then has one type, as a strongly typed TensorRT network asks.

    Raises:
        ExportError: a number does not fit float16.
    """
    graph = model.graph
    nodes = list(graph)
    start = next(i for i, node in enumerate(nodes) if node.op_type in ("Conv", "QuantizeLinear"))
    body = nodes[start:]
    for node in body:
        for value in node.inputs:
            if value is not None and value.is_initializer() and value.dtype == ir.DataType.FLOAT:
                _convert(value)
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                value.type = HALF

    normalized = body[0].inputs[0]
    assert normalized is not None
    rounded = _cast(normalized, ir.DataType.FLOAT16, f"{normalized.name}.half")
    graph.insert_before(body[0], rounded)
    for use in list(normalized.uses()):
        if use.node is not rounded:
            use.node.replace_input_with(use.idx, rounded.outputs[0])

    half_logits = graph.outputs[0]
    half_logits.name = f"{OUTPUT_NAME}.half"
    widened = _cast(half_logits, ir.DataType.FLOAT, OUTPUT_NAME)
    graph.append(widened)
    graph.outputs[0] = widened.outputs[0]


def _convert(value: ir.Value) -> None:
    assert value.const_value is not None
    exact = value.const_value.numpy()
    largest = float(np.abs(exact).max(initial=0.0))
    if not largest <= FLOAT16_MAX:
        raise ExportError(
            f"{value.name} holds {largest:g}, which float16 cannot (its largest is 65504)",
            "export without --fp16 and --int8, or train with more weight decay",
        )
    value.const_value = ir.tensor(exact.astype(np.float16), name=value.name)
    value.type = HALF


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    node = ir.node("Cast", [value], {"to": dtype.value}, name=f"{name}.cast")
    node.outputs[0].name = name
    node.outputs[0].type = ir.TensorType(dtype)
    node.outputs[0].shape = value.shape
    return node
