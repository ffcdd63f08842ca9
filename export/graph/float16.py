"""Conversion of a graph to float16, except for the normalisation of the pixels."""

from __future__ import annotations

from itertools import dropwhile

import numpy as np
import onnx_ir as ir

from resdeploy.bundle.manifest import OUTPUT_NAME
from resdeploy.errors import ExportError

# Clones of a model share the type objects, so types are replaced and never modified.
HALF = ir.TensorType(ir.DataType.FLOAT16)
FLOAT16_MAX = float(np.finfo(np.float16).max)


def to_float16(model: ir.Model) -> None:
    """Convert weights, biases, scales and activations of `model` to float16, in place.

    The pixels are normalised in float32 and then rounded once; the logits are cast to float32. All
    tensors get explicit types, which strongly typed TensorRT networks need.

    Raises:
        ExportError: A value is outside the range of float16.
    """
    graph = model.graph
    body = list(dropwhile(lambda node: node.op_type not in ("Conv", "QuantizeLinear"), graph))
    for node in body:
        for value in node.inputs:
            if value is not None and value.is_initializer() and value.dtype == ir.DataType.FLOAT:
                _convert_initializer(value)
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                value.type = HALF

    normalized = body[0].inputs[0]
    assert normalized is not None
    rounded = _cast(normalized, ir.DataType.FLOAT16, f"{normalized.name}.half")
    ir.convenience.replace_all_uses_with(normalized, rounded.outputs[0])
    rounded.replace_input_with(0, normalized)
    graph.insert_before(body[0], rounded)

    half_logits = graph.outputs[0]
    half_logits.name = f"{OUTPUT_NAME}.half"
    widened = _cast(half_logits, ir.DataType.FLOAT, OUTPUT_NAME)
    graph.append(widened)
    graph.outputs[0] = widened.outputs[0]


def _convert_initializer(value: ir.Value) -> None:
    assert value.const_value is not None
    exact = value.const_value.numpy()
    largest = float(np.abs(exact).max(initial=0.0))
    if not largest <= FLOAT16_MAX:
        raise ExportError(
            f"{value.name} contains {largest:g}, but the largest float16 value is {FLOAT16_MAX:g}",
            "export without --fp16 and --int8, or train with a larger --weight-decay",
        )
    value.const_value = ir.tensor(exact.astype(np.float16), name=value.name)
    value.type = HALF


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    output = ir.val(name, dtype, value.shape)
    return ir.node("Cast", [value], {"to": dtype.value}, outputs=[output], name=f"{name}.cast")
