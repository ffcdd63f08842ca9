"""The normal form of a graph from elsewhere, on which placement and quantisation work.

ONNX Runtime folds constants, shape computations and batch norms, and finds layer norms and GELU
(https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html, "Basic graph
optimizations"; their results are plain ONNX operators). The rules here rewrite what remains: one
operator for each kind of layer, as the export of a checkpoint has them.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxruntime
from onnx import version_converter

from resdeploy.bundle.manifest import OUTPUT_NAME
from resdeploy.errors import ExportError, one_line_reason
from resdeploy.export.graph.to_onnx import IR_VERSION, OPSET

# Batch size while shapes are computed. No size of a network is a multiple of a large prime number,
# so that the batch axis is found again in every shape.
BATCH = 1009


def normal_form(
    proto: onnx.ModelProto, input_name: str, shape: tuple[int, int, int], name: str
) -> ir.Model:
    """Return the graph of a classifier with plain operators, fixed sizes and a dynamic batch.

    Args:
        proto: A graph with one input (batch, C, H, W) of float32, and one output.
        input_name: Name of this input.
        shape: Sizes C, H and W of the input.
        name: Name of the result.

    Raises:
        ExportError: The graph cannot be converted, or its batch size is a constant.
    """
    model = ir.from_proto(_fold(proto, input_name, shape))
    passes.ShapeInferencePass()(model)
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


def _fold(proto: onnx.ModelProto, input_name: str, shape: tuple[int, int, int]) -> onnx.ModelProto:
    """Return the graph with the batch size `BATCH`, and all constants computed."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    (value,) = (value for value in fixed.graph.input if value.name == input_name)
    del fixed.graph.input[:]
    fixed.graph.input.append(value)
    dimensions = value.type.tensor_type.shape.dim
    for dimension, size in zip(dimensions, (BATCH, *shape), strict=True):
        dimension.Clear()
        dimension.dim_value = size
    for output in fixed.graph.output:
        output.type.tensor_type.ClearField("shape")
    del fixed.graph.value_info[:]
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
    except Exception as error:
        raise ExportError(f"the graph cannot be converted: {one_line_reason(error)}") from error
    used = {node.domain for node in folded.graph.node} - {"", "ai.onnx"}
    if used:
        raise ExportError(f"the graph uses operators of {min(used)}")
    kept = [entry for entry in folded.opset_import if entry.domain in ("", "ai.onnx")]
    del folded.opset_import[:]
    folded.opset_import.extend(kept)
    return folded


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


def _reduces_maps(node: ir.Node) -> bool:
    axes = _constant(node, 1)
    value = node.inputs[0]
    rank = len(value.shape) if value is not None and value.shape is not None else 0
    return rank == 4 and axes is not None and sorted(axis % 4 for axis in axes.tolist()) == [2, 3]


def _pool(graph: ir.Graph, node: ir.Node) -> None:
    pooled = ir.node("GlobalAveragePool", [node.inputs[0]])
    pooled.outputs[0].type = node.outputs[0].type
    added = [pooled]
    if not node.attributes.get_int("keepdims", 1):
        shape = node.inputs[0].shape  # type: ignore[union-attr]
        pooled.outputs[0].shape = ir.Shape([shape[0], shape[1], 1, 1])  # type: ignore[index]
        added.append(ir.node("Flatten", [pooled.outputs[0]], {"axis": 1}))
    _replace(graph, node, added)


def _drops_maps(node: ir.Node) -> bool:
    """Return True for (N, C, 1, 1) -> (N, C), and for (N, C, H, W) -> (N, C H W)."""
    before, after = _shape(node.inputs[0]), _shape(node.outputs[0])
    return len(after) == 2 and len(before) > 2 and before[0] == after[0]


def _simplify_clip(graph: ir.Graph, node: ir.Node) -> None:
    low = _constant(node, 1)
    high = _constant(node, 2)
    if low is not None and float(low) == 0 and (high is None or float(high) >= 3e38):
        _replace(graph, node, [ir.node("Relu", [node.inputs[0]])])


def _simplify_gemm(graph: ir.Graph, node: ir.Node) -> None:
    """Rewrite to `transB`, without factors, as placement expects weights (outputs, inputs)."""
    weight, bias = _constant(node, 1), _constant(node, 2)
    attributes = node.attributes
    if weight is None or attributes.get_int("transA", 0) or (len(node.inputs) > 2 and bias is None):
        return
    if not attributes.get_int("transB", 0):
        weight = weight.T
    weight = weight * np.float32(attributes.get_float("alpha", 1.0))
    inputs = [node.inputs[0], _add_constant(graph, f"{node.inputs[1].name}.t", weight)]
    if bias is not None:
        bias = bias * np.float32(attributes.get_float("beta", 1.0))
        bias = np.broadcast_to(bias.reshape(-1), (len(weight),))
        inputs.append(_add_constant(graph, f"{node.inputs[2].name}.t", bias))
    _replace(graph, node, [ir.node("Gemm", inputs, {"transB": 1})])


def _scale_channels(graph: ir.Graph, node: ir.Node) -> None:
    """Replace a batch norm that follows no convolution by a product and a sum."""
    parameters = [_constant(node, index) for index in range(1, 5)]
    if any(value is None for value in parameters):
        return
    scale, shift, mean, variance = parameters
    factor = scale / np.sqrt(variance + np.float32(node.attributes.get_float("epsilon", 1e-5)))
    shape = (-1, *(1,) * (len(_shape(node.inputs[0])) - 2))
    name = node.inputs[1].name
    product = ir.node(
        "Mul", [node.inputs[0], _add_constant(graph, f"{name}.factor", factor.reshape(shape))]
    )
    product.outputs[0].type, product.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    offset = _add_constant(graph, f"{name}.offset", (shift - mean * factor).reshape(shape))
    _replace(graph, node, [product, ir.node("Add", [product.outputs[0], offset])])


def _free_batch(model: ir.Model) -> None:
    """Make the batch size dynamic again."""
    for node in model.graph:
        if node.op_type == "Reshape":
            target, after = _constant(node, 1), _shape(node.outputs[0])
            if after and isinstance(after[0], int) and after[0] % BATCH == 0:
                rest = list(after[1:])
                node.replace_input_with(
                    1, _add_constant(model.graph, f"{node.name}.shape", np.array([-1, *rest]))
                )
        elif node.op_type == "Expand":
            raise ExportError("the batch size is a constant")
    for name, value in model.graph.initializers.items():
        array = value.const_value.numpy()
        if any(size and size % BATCH == 0 for size in array.shape) or (
            array.dtype == np.int64 and array.size < 100 and (array == BATCH).any()
        ):
            if value.uses():
                raise ExportError(f"the batch size is a constant: {name}")
    values = ir.convenience.create_value_mapping(model.graph)
    for value in values.values():
        if value.shape is not None and not value.is_initializer():
            first, *rest = value.shape
            symbol = (
                "batch"
                if first == BATCH
                else f"batch{first // BATCH}"
                if isinstance(first, int) and first % BATCH == 0
                else first
            )
            value.shape = ir.Shape([symbol, *rest])


def _name(graph: ir.Graph) -> None:
    counts: Counter[str] = Counter()
    for node in graph:
        name = node.name or node.op_type.lower()
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name]}"
        if not node.outputs[0].is_graph_output():
            node.outputs[0].name = node.name
    graph.outputs[0].name = OUTPUT_NAME


def _constant(node: ir.Node, index: int) -> npt.NDArray[np.generic] | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _shape(value: ir.Value | None):
    return (
        ()
        if value is None or value.shape is None
        else tuple(d if isinstance(d, int) else -1 for d in value.shape)
    )


def _add_constant(graph: ir.Graph, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
    while name in graph.initializers:
        name += "_"
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
