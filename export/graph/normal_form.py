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
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxruntime
from onnx import version_converter

from resdeploy.bundle.graph_check import MAX_ELEMENTS
from resdeploy.bundle.manifest import OUTPUT_NAME
from resdeploy.errors import ExportError, one_line_reason
from resdeploy.export.graph.placement import value_name
from resdeploy.export.graph.to_onnx import IR_VERSION, OPSET

# Batch size while shapes are computed. No size of a network is a multiple of a large prime number,
# so that the batch axis is found again in every shape.
BATCH = 1009
GRAPH_HINT = "export the network again, with a dynamic batch size and operators of ONNX itself"


def normal_form(
    proto: onnx.ModelProto,
    input_name: str,
    shape: tuple[int, int, int],
    name: str,
    *,
    batch: int | None = None,
) -> ir.Model:
    """Return the graph of a classifier with plain operators, fixed sizes and a dynamic batch.

    Args:
        proto: A graph with one input (batch, C, H, W) of float32, and one output.
        input_name: Name of this input.
        shape: Sizes C, H and W of the input.
        name: Name of the result.
        batch: Number of images for which the file was written; None for any number.

    Raises:
        ExportError: The graph cannot be converted, or its batch size is a constant.
    """
    model = ir.from_proto(_fold(proto, input_name, shape, batch))
    passes.ShapeInferencePass()(model)
    if _shape(model.graph.outputs[0])[:1] != (BATCH,):
        raise ExportError(
            "the graph depends on the number of images of a call: its output has the shape "
            f"{_shape(model.graph.outputs[0])} for {BATCH} images",
            GRAPH_HINT,
        )
    _rewrite(model)
    passes.RemoveUnusedNodesPass()(model)
    _free_batch(model)
    _name(model.graph)
    model.ir_version = IR_VERSION
    model.producer_name = "resdeploy"
    model.graph.name = name
    passes.ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
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
    proto: onnx.ModelProto, input_name: str, shape: tuple[int, int, int], batch: int | None
) -> onnx.ModelProto:
    """Return the graph with the batch size `BATCH`, and all constants computed.

    In a file for a fixed `batch`, exporters also write this number into the shapes of the graph.
    """
    if batch is not None:
        proto = _optimize(proto, input_name, (batch, *shape))
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
    return _optimize(proto, input_name, (BATCH, *shape))


def _optimize(
    proto: onnx.ModelProto, input_name: str, shape: tuple[int, int, int, int]
) -> onnx.ModelProto:
    """Return the graph for images (N, C, H, W) of these sizes, as ONNX Runtime simplifies it."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    keep_input(fixed.graph, input_name)
    dimensions = fixed.graph.input[0].type.tensor_type.shape.dim
    for dimension, size in zip(dimensions, shape, strict=True):
        dimension.Clear()
        dimension.dim_value = size
    for output in fixed.graph.output:
        output.type.tensor_type.ClearField("shape")
    del fixed.graph.value_info[:]
    _check_sizes(fixed)
    try:
        if {entry.domain: entry.version for entry in fixed.opset_import}.get("", 0) != OPSET:
            fixed = version_converter.convert_version(fixed, OPSET)
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
    except Exception as error:  # both libraries have many exception types of their own
        raise ExportError(
            f"the graph cannot be converted: {one_line_reason(error)}", GRAPH_HINT
        ) from error
    kept = [entry for entry in folded.opset_import if entry.domain in ("", "ai.onnx")]
    del folded.opset_import[:]
    folded.opset_import.extend(kept)
    return folded


def keep_input(graph: onnx.GraphProto, name: str) -> None:
    """Remove all inputs but one; the others are initialisers, which old files list as inputs."""
    for index in reversed(range(len(graph.input))):
        if graph.input[index].name != name:
            del graph.input[index]


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


def _rewrite(model: ir.Model) -> None:
    graph = model.graph
    for node in list(graph):
        if node.op_type == "ReduceMean" and _reduces_maps(node):
            _pool(graph, node)
        elif node.op_type in ("Reshape", "Squeeze") and _drops_maps(node):
            _replace(graph, node, [ir.node("Flatten", [node.inputs[0]], {"axis": 1})])
        elif node.op_type == "Clip":
            _simplify_clip(graph, node)
        elif node.op_type == "Gemm":
            _simplify_gemm(graph, node)
        elif node.op_type == "BatchNormalization":
            _scale_channels(graph, node)
        elif node.op_type in ("Conv", "MaxPool", "AveragePool"):
            _write_window(node)


def _reduces_maps(node: ir.Node) -> bool:
    """Return True for a mean over height and width."""
    axes = _constant(node, 1)
    if len(_shape(node.inputs[0])) != 4 or axes is None:
        return False
    return sorted(axis % 4 for axis in axes.tolist()) == [2, 3]


def _pool(graph: ir.Graph, node: ir.Node) -> None:
    pooled = ir.node("GlobalAveragePool", [node.inputs[0]])
    pooled.outputs[0].type = node.outputs[0].type
    added = [pooled]
    if not node.attributes.get_int("keepdims", 1):
        pooled.outputs[0].shape = ir.Shape([*_shape(node.inputs[0])[:2], 1, 1])
        added.append(ir.node("Flatten", [pooled.outputs[0]], {"axis": 1}))
    _replace(graph, node, added)


def _drops_maps(node: ir.Node) -> bool:
    """Return True for (N, C, 1, 1) -> (N, C), and for (N, C, H, W) -> (N, C H W)."""
    before, after = _shape(node.inputs[0]), _shape(node.outputs[0])
    return len(after) == 2 and len(before) > 2 and before[0] == after[0]


def _simplify_clip(graph: ir.Graph, node: ir.Node) -> None:
    """Write both limits of a `Clip`, or a `Relu` if only negative values are clipped."""
    widest = float(np.finfo(np.float32).max)
    given = [node.inputs[index] if index < len(node.inputs) else None for index in (1, 2)]
    limits = [
        (-widest, widest)[index - 1] if value is None else _constant(node, index)
        for index, value in enumerate(given, start=1)
    ]
    if limits[0] is None or limits[1] is None:
        return
    low, high = float(limits[0]), float(limits[1])
    if low == 0 and high >= widest:
        _replace(graph, node, [ir.node("Relu", [node.inputs[0]])])
    elif None in given:
        constants = [
            _add_constant(graph, f"{node.name}.{name}", np.array(limit, dtype=np.float32))
            for name, limit in (("min", low), ("max", high))
        ]
        _replace(graph, node, [ir.node("Clip", [node.inputs[0], *constants])])


def _simplify_gemm(graph: ir.Graph, node: ir.Node) -> None:
    """Rewrite to `transB`, without factors, as placement expects weights (outputs, inputs)."""
    weight, bias = _constant(node, 1), _constant(node, 2)
    attributes = node.attributes
    adds_activation = len(node.inputs) > 2 and bias is None
    if weight is None or adds_activation or attributes.get_int("transA", 0) != 0:
        return
    if attributes.get_int("transB", 0) == 0:
        weight = weight.T
    weight = weight * np.float32(attributes.get_float("alpha", 1.0))
    names = [value_name(value) for value in node.inputs[1:]]
    inputs = [node.inputs[0], _add_constant(graph, names[0], weight)]
    if bias is not None:
        bias = bias * np.float32(attributes.get_float("beta", 1.0))
        bias = np.broadcast_to(bias.reshape(-1), (len(weight),))
        inputs.append(_add_constant(graph, names[1], bias))
    _replace(graph, node, [ir.node("Gemm", inputs, {"transB": 1})])


def _write_window(node: ir.Node) -> None:
    """Write the attributes of a window over maps that have a default, and its padding in pixels.

    Source: "auto_pad" in the specification of Conv, https://onnx.ai/onnx/operators/.
    """
    before, after = _shape(node.inputs[0])[2:], _shape(node.outputs[0])[2:]
    attributes, rank = node.attributes, len(before)
    kernel = attributes.get_ints("kernel_shape") or _shape(node.inputs[1])[2:]
    strides = attributes.get_ints("strides", (1,) * rank)
    dilations = attributes.get_ints("dilations", (1,) * rank)
    pads = list(attributes.get_ints("pads", (0,) * 2 * rank))
    kind = attributes.get_string("auto_pad", "NOTSET")
    if kind.startswith("SAME"):
        spans = [(size - 1) * step + 1 for size, step in zip(kernel, dilations)]
        totals = [
            max(0, (outputs - 1) * stride + span - inputs)
            for inputs, outputs, stride, span in zip(before, after, strides, spans)
        ]
        smaller, larger = [total // 2 for total in totals], [-(-total // 2) for total in totals]
        pads = smaller + larger if kind == "SAME_UPPER" else larger + smaller
    elif kind == "VALID":
        pads = [0] * 2 * rank
    for name, values in (
        ("kernel_shape", kernel), ("strides", strides), ("dilations", dilations), ("pads", pads),
    ):  # fmt: skip
        attributes.add(ir.AttrInt64s(name, tuple(values)))
    attributes.pop("auto_pad", None)


def _scale_channels(graph: ir.Graph, node: ir.Node) -> None:
    """Replace a batch norm that follows no convolution by a product and a sum."""
    parameters = [_constant(node, index) for index in range(1, 5)]
    scale, shift, mean, variance = parameters
    if scale is None or shift is None or mean is None or variance is None:
        return
    factor = scale / np.sqrt(variance + np.float32(node.attributes.get_float("epsilon", 1e-5)))
    shape = (-1, *(1,) * (len(_shape(node.inputs[0])) - 2))
    name = value_name(node.inputs[1])
    product = ir.node(
        "Mul", [node.inputs[0], _add_constant(graph, f"{name}.factor", factor.reshape(shape))]
    )
    product.outputs[0].type, product.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    offset = _add_constant(graph, f"{name}.offset", (shift - mean * factor).reshape(shape))
    _replace(graph, node, [product, ir.node("Add", [product.outputs[0], offset])])


def _free_batch(model: ir.Model) -> None:
    """Make the batch size dynamic again.

    Raises:
        ExportError: A constant or a target of a `Reshape` depends on the batch size.
    """
    for node in model.graph:
        shape = _shape(node.outputs[0])
        if node.op_type == "Reshape" and shape and shape[0] % BATCH == 0:
            target = _add_constant(model.graph, f"{node.name}.shape", np.array([-1, *shape[1:]]))
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
        shape = _shape(value)
        if value.is_initializer() or not shape:
            continue
        many = shape[0] // BATCH
        if shape[0] == many * BATCH:
            value.shape = ir.Shape(["batch" if many == 1 else f"batch_{many}", *shape[1:]])


def _name(graph: ir.Graph) -> None:
    counts: Counter[str] = Counter()
    for node in graph:
        name = node.name or node.op_type.lower()
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name]}"
        if not node.outputs[0].is_graph_output():
            node.outputs[0].name = node.name
    graph.outputs[0].name = OUTPUT_NAME


def _constant(node: ir.Node, index: int) -> npt.NDArray[Any] | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    """Return the shape of a tensor, with -1 for unknown sizes; empty if it is unknown."""
    return (
        ()
        if value is None or value.shape is None
        else tuple(d if isinstance(d, int) else -1 for d in value.shape)
    )


def _add_constant(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    while name in graph.initializers:
        name += ".plain"
    value = ir.val(name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    graph.register_initializer(value)
    return value


def _replace(graph: ir.Graph, node: ir.Node, added: list[ir.Node]) -> None:
    """Replace a node by `added`, the last of which computes its output."""
    last = added[-1].outputs[0]
    last.type, last.shape = node.outputs[0].type, node.outputs[0].shape
    added[-1].name = node.name
    for index, new in enumerate(added[:-1]):
        new.name = f"{node.name}.{index}"
    graph.insert_before(node, added)
    ir.convenience.replace_all_uses_with(node.outputs[0], last, replace_graph_outputs=True)
    graph.remove(node, safe=True)
