"""The normal form of a graph from elsewhere, on which placement and quantisation work.

ONNX Runtime folds constants, shape computations and batch norms, and finds layer norms and GELU
(https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html, "Basic graph
optimizations"; their results are plain ONNX operators). The rules here rewrite what remains: one
operator for each kind of layer, as the export of a checkpoint has them.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxruntime
from onnx import version_converter

from resdeploy.bundle.graph_check import MAX_ELEMENTS
from resdeploy.bundle.manifest import OUTPUT_NAME
from resdeploy.errors import ExportError, one_line_reason
from resdeploy.export.graph.layer_rules import (
    add_constant,
    rewrite_layers,
    separate_weights,
    shape_of,
    share_rows,
)
from resdeploy.export.graph.to_onnx import IR_VERSION, OPSET, clear_metadata

# Batch size while shapes are computed. No size of a network is a multiple of a large prime number,
# so that the batch axis is found again in every shape.
BATCH = 1009
GRAPH_HINT = "export the network again, with a dynamic batch size and operators of ONNX itself"


def normal_form(
    proto: onnx.ModelProto,
    shape: tuple[int, int, int],
    name: str,
    *,
    batch: int | None = None,
) -> ir.Model:
    """Return the graph of a classifier with plain operators, fixed sizes and a dynamic batch.

    Args:
        proto: A graph with one input (batch, C, H, W) of float32, and one output.
        shape: Sizes C, H and W of the input.
        name: Name of the result.
        batch: Number of images for which the file was written; None for any number.

    Raises:
        ExportError: The graph cannot be converted, or its batch size is a constant.
    """
    model = ir.from_proto(_fold(proto, shape, batch))
    passes.ShapeInferencePass()(model)
    if shape_of(model.graph.outputs[0])[:1] != (BATCH,):
        raise ExportError(
            "the graph depends on the number of images of a call: its output has the shape "
            f"{shape_of(model.graph.outputs[0])} for {BATCH} images",
            GRAPH_HINT,
        )
    share_rows(model.graph, BATCH)
    rewrite_layers(model.graph)
    separate_weights(model.graph)
    passes.RemoveUnusedNodesPass()(model)
    _free_batch(model)
    passes.RemoveUnusedNodesPass()(model)  # the targets of `Reshape` that were replaced
    _name(model.graph)
    for value in model.graph.initializers.values():  # as bytes, which is one of several ways
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    model.ir_version = IR_VERSION
    model.producer_name = "resdeploy"
    model.graph.name = name
    clear_metadata(model)
    return model


def with_normalisation(body: ir.Model, normalisation: ir.Model, *, flipped: bool) -> ir.Model:
    """Return the graph that normalises uint8 images and runs `body` on them.

    Args:
        body: Result of `normal_form`; its nodes move into the result.
        normalisation: Graph of `to_onnx.normalisation_to_onnx`.
        flipped: True if the network takes BGR, but the normalisation gives RGB.

    Raises:
        ExportError: The channels cannot be flipped, because more than a convolution reads them.
    """
    graph, (pixels,) = normalisation.graph, body.graph.inputs
    if flipped:
        _flip_channels(pixels)
    nodes, values = list(body.graph), list(body.graph.initializers.values())
    outputs = list(body.graph.outputs)
    body.graph.outputs.clear()
    ir.convenience.replace_all_uses_with(pixels, graph.outputs[0])
    body.graph.remove(nodes)
    body.graph.initializers.clear()
    taken = {node.name for node in graph} | set(graph.initializers)
    for value in values:
        if value.name in taken:
            value.name = f"{value.name}.body"
        graph.register_initializer(value)
    for node in nodes:
        if node.name in taken:  # a graph that resdeploy exported has a normalisation, too
            node.name = f"{node.name}.body"
            node.outputs[0].name = node.name
    graph.extend(nodes)
    graph.outputs[:] = outputs
    graph.name = body.graph.name
    for node in list(graph)[: -len(nodes)]:
        node.outputs[0].name = node.name
    outputs[0].name = OUTPUT_NAME
    return normalisation


def _flip_channels(pixels: ir.Value) -> None:
    for node, index in pixels.uses():
        weight = node.inputs[1] if node.op_type == "Conv" and index == 0 else None
        if weight is None or weight.const_value is None or node.attributes.get_int("group", 1) > 1:
            raise ExportError(
                "the graph changes the pixels before its first convolution, so that BGR cannot be "
                "a part of its weights",
                "export the graph again for RGB",
            )
        flipped = np.ascontiguousarray(weight.const_value.numpy()[:, ::-1])
        weight.const_value = ir.tensor(flipped, name=weight.name)


def _fold(
    proto: onnx.ModelProto, shape: tuple[int, int, int], batch: int | None
) -> onnx.ModelProto:
    """Return the graph with the batch size `BATCH`, and all constants computed.

    In a file for a fixed `batch`, exporters also write this number into the shapes of the graph.
    """
    if batch is not None:
        fixed = ir.from_proto(_optimize(proto, (batch, *shape)))
        passes.ShapeInferencePass()(fixed)
        share_rows(fixed.graph, batch)
        proto = ir.to_proto(fixed)
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
        sizes = {
            value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
            for value in (*inferred.input, *inferred.value_info)
        }
        for node in proto.graph.node:
            before, after = sizes.get(node.input[0], []), sizes.get(node.output[0], [])
            if node.op_type == "Reshape" and before[:1] == after[:1] == [batch]:
                name = f"{node.name}.target"
                target = np.array([-1, *after[1:]], dtype=np.int64)
                proto.graph.initializer.append(onnx.numpy_helper.from_array(target, name))
                node.input[1] = name
    return _optimize(proto, (BATCH, *shape))


def _optimize(proto: onnx.ModelProto, shape: tuple[int, int, int, int]) -> onnx.ModelProto:
    """Return the graph for images (N, C, H, W) of these sizes, as ONNX Runtime simplifies it."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    dimensions = fixed.graph.input[0].type.tensor_type.shape.dim
    for dimension, size in zip(dimensions, shape, strict=True):
        dimension.Clear()
        dimension.dim_value = size
    for output in fixed.graph.output:
        output.type.tensor_type.ClearField("shape")
    del fixed.graph.value_info[:]
    _check_sizes(fixed)
    version = {entry.domain: entry.version for entry in fixed.opset_import}.get("", 0)
    try:
        if version != OPSET:
            fixed = version_converter.convert_version(fixed, OPSET)
    except Exception as error:  # the library has many exception types of its own
        raise ExportError(
            f"the operators of version {version} cannot be converted to version {OPSET}: "
            f"{one_line_reason(error)}",
            f"export the network again with opset_version={OPSET}",
        ) from error
    try:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "folded.onnx")
            options.optimized_model_filepath = str(file)
            onnxruntime.InferenceSession(
                fixed.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            folded = onnx.load(file)
    except Exception as error:  # as above
        raise ExportError(
            f"the graph cannot be converted: {one_line_reason(error)}", GRAPH_HINT
        ) from error
    kept = [entry for entry in folded.opset_import if entry.domain in ("", "ai.onnx")]
    del folded.opset_import[:]
    folded.opset_import.extend(kept)
    return folded


def _check_sizes(proto: onnx.ModelProto) -> None:
    """Refuse a graph whose tensors cannot be computed, before ONNX Runtime tries."""
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception as error:
        raise ExportError(
            f"the graph is not valid ONNX: {one_line_reason(error)}", GRAPH_HINT
        ) from error
    for value in inferred.graph.value_info:
        sizes = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        if prod(sizes) > MAX_ELEMENTS * BATCH:
            raise ExportError(
                f"the graph computes a tensor of {' x '.join(map(str, sizes))} values", GRAPH_HINT
            )


def _free_batch(model: ir.Model) -> None:
    """Make the batch size dynamic again.

    Raises:
        ExportError: A constant or a target of a `Reshape` depends on the batch size.
    """
    for node in model.graph:
        shape = shape_of(node.outputs[0])
        if node.op_type == "Reshape" and shape and shape[0] % BATCH == 0:
            if -1 in shape:
                raise ExportError(f"the shape of {node.name} is not a constant", GRAPH_HINT)
            target = add_constant(model.graph, f"{node.name}.shape", np.array([-1, *shape[1:]]))
            node.replace_input_with(1, target)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or not value.uses():
            continue
        sizes = list(tensor.shape.numpy())
        if tensor.dtype is ir.DataType.INT64:
            sizes += tensor.numpy().ravel().tolist()
        if any(size and size % BATCH == 0 for size in sizes):
            raise ExportError(
                f"the graph depends on the number of images of a call (in {value.name})",
                GRAPH_HINT,
            )
    for value in ir.convenience.create_value_mapping(model.graph).values():
        shape = shape_of(value)
        if value.is_initializer() or not shape:
            continue
        many = shape[0] // BATCH
        if shape[0] == many * BATCH:
            value.shape = ir.Shape(["batch" if many == 1 else f"batch_{many}", *shape[1:]])


def _name(graph: ir.Graph) -> None:
    """Give each node a name of its own, and its output the same; no constant has such a name."""
    counts = Counter(list(graph.initializers))
    for node in graph:
        name = node.name or node.op_type.lower()
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name]}"
        if not node.outputs[0].is_graph_output():
            node.outputs[0].name = node.name
    graph.outputs[0].name = OUTPUT_NAME
