"""Rules that rewrite the nodes of a graph from elsewhere to those of an exported checkpoint.

Each kind of layer gets one operator with explicit attributes and constants, so that placement and
quantisation need not know how an exporter writes it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from resdeploy.export.graph.placement import WEIGHTED, value_name

# Operators that repeat an operand along an axis of size one.
BROADCASTING = ("Add", "Div", "Mul", "Sub")


def rewrite_layers(graph: ir.Graph) -> None:
    """Apply all rules, in place; every value must have a shape."""
    for node in list(graph):
        if node.op_type == "ReduceMean" and _reduces_maps(node):
            _pool(graph, node)
        elif node.op_type == "AveragePool" and _covers_maps(node):
            _replace(graph, node, [ir.node("GlobalAveragePool", [node.inputs[0]])])
        elif node.op_type in ("Reshape", "Squeeze") and _drops_maps(node):
            _replace(graph, node, [ir.node("Flatten", [node.inputs[0]], {"axis": 1})])
        elif node.op_type == "Clip":
            _simplify_clip(graph, node)
        elif node.op_type == "Gemm":
            _simplify_gemm(graph, node)
        elif node.op_type == "BatchNormalization":
            _scale_channels(graph, node)
        elif node.op_type == "Split":
            _slice_parts(graph, node)
        elif node.op_type == "Pad":
            _simplify_pad(graph, node)
        elif node.op_type in ("Conv", "MaxPool", "AveragePool"):
            _write_window(node)
            if node.op_type == "AveragePool":
                _pad_before_averaging(graph, node)


def separate_weights(graph: ir.Graph) -> None:
    """Give each layer weights of its own, in place: exporters store equal ones once."""
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        for node, index in list(value.uses())[1:]:
            if node.op_type in WEIGHTED and tensor is not None:
                own = add_constant(graph, f"{node.name}.input{index}", tensor.numpy())
                node.replace_input_with(index, own)


def share_rows(graph: ir.Graph, batch: int) -> None:
    """Replace constants with `batch` equal rows by one row, in place.

    Exporters repeat what is the same for each image, such as the class token of a vision
    transformer, and folding makes the number of images a constant.
    """
    for value in list(graph.initializers.values()):
        sizes = [] if value.const_value is None else list(value.const_value.shape.numpy())
        if value.const_value is None or sizes[:1] != [batch]:
            continue
        array = value.const_value.numpy()
        if not (array == array[:1]).all():
            continue
        for node, index in list(value.uses()):
            rank = len(shape_of(node.outputs[0]))
            if batch > 1 and node.op_type in BROADCASTING and rank == len(sizes):
                row = add_constant(graph, f"{node.name}.row", array[:1])
                node.replace_input_with(index, row)
            elif node.op_type == "Concat" and len(node.inputs) == 2:
                _add_instead_of_joining(graph, node, index, array[:1])


def _add_instead_of_joining(
    graph: ir.Graph, node: ir.Node, index: int, row: npt.NDArray[Any]
) -> None:
    """Replace the concatenation of a repeated row: pad both operands with zeros, and add them."""
    sizes = shape_of(node.outputs[0])
    axis = node.attributes.get_int("axis", 0) % len(sizes)
    if axis == 0:
        return
    missing = np.zeros((2, len(sizes)), dtype=np.int64)  # before and behind the activation
    missing[index, axis] = row.shape[axis]
    others = np.zeros((2, len(sizes)), dtype=np.int64)
    others[1 - index, axis] = sizes[axis] - row.shape[axis]
    pads = add_constant(graph, f"{node.name}.pads", missing.ravel())
    padded = ir.node("Pad", [node.inputs[1 - index], pads])
    padded.outputs[0].type, padded.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    offset = add_constant(graph, f"{node.name}.row", np.pad(row, others.T))
    _replace(graph, node, [padded, ir.node("Add", [padded.outputs[0], offset])])


def _reduces_maps(node: ir.Node) -> bool:
    """Return True for a mean over height and width."""
    axes = constant(node, 1)
    if len(shape_of(node.inputs[0])) != 4 or axes is None:
        return False
    return sorted(axis % 4 for axis in axes.tolist()) == [2, 3]


def _pool(graph: ir.Graph, node: ir.Node) -> None:
    pooled = ir.node("GlobalAveragePool", [node.inputs[0]])
    pooled.outputs[0].type = node.outputs[0].type
    added = [pooled]
    if not node.attributes.get_int("keepdims", 1):
        pooled.outputs[0].shape = ir.Shape([*shape_of(node.inputs[0])[:2], 1, 1])
        added.append(ir.node("Flatten", [pooled.outputs[0]], {"axis": 1}))
    _replace(graph, node, added)


def _covers_maps(node: ir.Node) -> bool:
    """Return True if the only window of an average pooling holds whole maps."""
    sizes, attributes = shape_of(node.inputs[0])[2:], node.attributes
    kernel = attributes.get_ints("kernel_shape", ())
    return (
        set(shape_of(node.outputs[0])[2:]) == {1}
        and all(span >= size for span, size in zip(kernel, sizes, strict=True))
        and not any(attributes.get_ints("pads", ()))
        and attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    )


def _drops_maps(node: ir.Node) -> bool:
    """Return True for (N, C, 1, 1) -> (N, C), and for (N, C, H, W) -> (N, C H W)."""
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    return len(after) == 2 and len(before) > 2 and before[0] == after[0]


def _simplify_clip(graph: ir.Graph, node: ir.Node) -> None:
    """Write both limits of a `Clip`, or a `Relu` if only negative values are clipped."""
    widest = float(np.finfo(np.float32).max)
    given = [node.inputs[index] if index < len(node.inputs) else None for index in (1, 2)]
    limits = [
        (-widest, widest)[index - 1] if value is None else constant(node, index)
        for index, value in enumerate(given, start=1)
    ]
    if limits[0] is None or limits[1] is None:
        return
    low, high = float(limits[0]), float(limits[1])
    if low == 0 and high >= widest:
        _replace(graph, node, [ir.node("Relu", [node.inputs[0]])])
    elif None in given:
        constants = [
            add_constant(graph, f"{node.name}.{name}", np.array(limit, dtype=np.float32))
            for name, limit in (("min", low), ("max", high))
        ]
        _replace(graph, node, [ir.node("Clip", [node.inputs[0], *constants])])


def _simplify_gemm(graph: ir.Graph, node: ir.Node) -> None:
    """Rewrite to `transB`, without factors, as placement expects weights (outputs, inputs)."""
    weight, bias = constant(node, 1), constant(node, 2)
    attributes = node.attributes
    adds_activation = len(node.inputs) > 2 and bias is None
    if weight is None or adds_activation or attributes.get_int("transA", 0) != 0:
        return
    if attributes.get_int("transB", 0) == 0:
        weight = weight.T
    weight = weight * np.float32(attributes.get_float("alpha", 1.0))
    names = [value_name(value) for value in node.inputs[1:]]
    inputs = [node.inputs[0], add_constant(graph, names[0], weight)]
    if bias is not None:
        bias = bias * np.float32(attributes.get_float("beta", 1.0))
        bias = np.broadcast_to(bias.reshape(-1), (len(weight),))
        inputs.append(add_constant(graph, names[1], bias))
    _replace(graph, node, [ir.node("Gemm", inputs, {"transB": 1})])


def _write_window(node: ir.Node) -> None:
    """Write the attributes of a window over maps that have a default, and its padding in pixels.

    Source: "auto_pad" in the specification of Conv, https://onnx.ai/onnx/operators/.
    """
    before, after = shape_of(node.inputs[0])[2:], shape_of(node.outputs[0])[2:]
    attributes, rank = node.attributes, len(before)
    kernel = attributes.get_ints("kernel_shape") or shape_of(node.inputs[1])[2:]
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
        if name == "dilations" and node.op_type == "AveragePool" and set(values) == {1}:
            attributes.pop(name, None)  # ONNX Runtime's integer kernel knows no such attribute
            continue
        attributes.add(ir.AttrInt64s(name, tuple(values)))
    attributes.pop("auto_pad", None)


def _simplify_pad(graph: ir.Graph, node: ir.Node) -> None:
    """Write the padding of all axes, and leave out a value of zero, in place."""
    pads, value, axes = (constant(node, index) for index in (1, 2, 3))
    given = [*node.inputs, None, None]
    if pads is None or (given[3] is not None and axes is None):
        return
    rank = len(shape_of(node.inputs[0]))
    amounts = np.zeros((2, rank), dtype=np.int64)
    amounts[:, slice(None) if axes is None else axes] = pads.reshape(2, -1)
    inputs = [node.inputs[0], add_constant(graph, f"{node.name}.pads", amounts.ravel())]
    if given[2] is not None and (value is None or value.any()):
        inputs.append(given[2])
    mode = node.attributes.get_string("mode", "constant")
    _replace(graph, node, [ir.node("Pad", inputs, {} if mode == "constant" else {"mode": mode})])


def _slice_parts(graph: ir.Graph, node: ir.Node) -> None:
    """Replace a `Split` by a `Slice` for each part, in place: all other nodes have one output."""
    axis = node.attributes.get_int("axis", 0) % len(shape_of(node.inputs[0]))
    start = 0
    for index, part in enumerate(node.outputs):
        end = start + shape_of(part)[axis]
        name = f"{node.name}.{index}"
        bounds = [
            add_constant(graph, f"{name}.{kind}", np.array([value], dtype=np.int64))
            for kind, value in (("start", start), ("end", end), ("axis", axis))
        ]
        sliced = ir.node("Slice", [node.inputs[0], *bounds], name=name)
        sliced.outputs[0].type, sliced.outputs[0].shape = part.type, part.shape
        graph.insert_before(node, sliced)
        ir.convenience.replace_all_uses_with(part, sliced.outputs[0])
        start = end
    graph.remove(node, safe=True)


def _pad_before_averaging(graph: ir.Graph, node: ir.Node) -> None:
    """Make counted zeros a part of the input, in place.

    Where a window reaches beyond them, ONNX Runtime's integer kernel otherwise divides by the size
    of the window, and not by the number of its values (seen in 1.32.0).
    """
    pads = node.attributes.get_ints("pads", ())
    rounds_up, counts_zeros = (
        node.attributes.get_int(name, 0) for name in ("ceil_mode", "count_include_pad")
    )
    if not rounds_up or not counts_zeros:
        return
    node.attributes.pop("count_include_pad")
    if any(pads):
        half = len(pads) // 2
        amounts = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]])
        padded = ir.node("Pad", [node.inputs[0], add_constant(graph, f"{node.name}.pads", amounts)])
        before = shape_of(node.inputs[0])
        sizes = [size + a + b for size, a, b in zip(before, *amounts.reshape(2, -1).tolist())]
        assert node.inputs[0] is not None
        padded.outputs[0].type, padded.outputs[0].shape = node.inputs[0].type, ir.Shape(sizes)
        padded.name = f"{node.name}.pad"
        graph.insert_before(node, padded)
        node.replace_input_with(0, padded.outputs[0])
        node.attributes.add(ir.AttrInt64s("pads", (0,) * len(pads)))


def _scale_channels(graph: ir.Graph, node: ir.Node) -> None:
    """Replace a batch norm that follows no convolution by a product and a sum."""
    parameters = [constant(node, index) for index in range(1, 5)]
    scale, shift, mean, variance = parameters
    if scale is None or shift is None or mean is None or variance is None:
        return
    factor = scale / np.sqrt(variance + np.float32(node.attributes.get_float("epsilon", 1e-5)))
    shape = (-1, *(1,) * (len(shape_of(node.inputs[0])) - 2))
    name = value_name(node.inputs[1])
    product = ir.node(
        "Mul", [node.inputs[0], add_constant(graph, f"{name}.factor", factor.reshape(shape))]
    )
    product.outputs[0].type, product.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    offset = add_constant(graph, f"{name}.offset", (shift - mean * factor).reshape(shape))
    _replace(graph, node, [product, ir.node("Add", [product.outputs[0], offset])])


def constant(node: ir.Node, index: int) -> npt.NDArray[Any] | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or value.const_value is None else value.const_value.numpy()


def shape_of(value: ir.Value | None) -> tuple[int, ...]:
    """Return the shape of a tensor, with -1 for unknown sizes; empty if it is unknown."""
    return (
        ()
        if value is None or value.shape is None
        else tuple(d if isinstance(d, int) else -1 for d in value.shape)
    )


def add_constant(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    while name in graph.initializers:
        name += ".plain"
    value = ir.val(name, const_value=ir.tensor(np.array(array, order="C"), name=name))
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
