"""The check of a bundle's graph before any engine reads it.

A small file may ask for any amount of memory and time: by paddings, by additions that broadcast, by
tensors that are joined again and again. So the shapes of all tensors are computed for one image, as
the operators of ONNX define them (https://onnx.ai/onnx/operators/), and limited.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from math import prod

from resdeploy.bundle.manifest import INPUT_NAME, OUTPUT_NAME
from resdeploy.bundle.onnx_reader import Buffer, Node, OnnxGraph, Shape, Value, Weight, read_onnx

UINT8, FLOAT = 2, 1
# ResNet-152 has 64 x 2048 x 2048 values after its first layer for a picture of 4096 x 4096 pixels,
# and needs 3.9e12 multiplications for it.
MAX_ELEMENTS = 1 << 28
MAX_MACS = 10**13
# The first layers have the most values: 64 for each pixel of CIFAR-10, 640 in its widest networks.
MAX_ELEMENTS_PER_PIXEL = 1024
FEWEST_ELEMENTS = 1 << 20  # the last layers of a network for very small pictures

Shapes = dict[str, Shape]


def check_onnx(data: Buffer, *, opset: int, image_size: tuple[int, int], classes: int) -> None:
    """Raise a ValueError unless `data` is a graph that every engine can load without risk.

    Args:
        data: Content of an ONNX file.
        opset: Version of the operators that the manifest states.
        image_size: Height and width of the input, in pixels.
        classes: Number of logits.
    """
    graph = read_onnx(data)
    if graph.opset != opset:
        raise ValueError(f"it uses version {graph.opset} of the operators, not {opset}")
    height, width = image_size
    _check_value(graph.inputs, INPUT_NAME, UINT8, (height, width, 3))
    _check_value(graph.outputs, OUTPUT_NAME, FLOAT, (classes,))
    shapes = {name: weight.shape for name, weight in graph.weights.items()}
    _add(shapes, INPUT_NAME, (1, height, width, 3))
    largest = max(FEWEST_ELEMENTS, min(MAX_ELEMENTS, MAX_ELEMENTS_PER_PIXEL * height * width))
    constants = set(graph.weights)
    macs = constant_elements = 0
    for node in graph.nodes:
        shape = _shape_of(node, shapes, graph)
        limit = largest
        if constants.issuperset(node.inputs):
            # Engines compute such tensors once and keep them. Our graphs do so for each weight of
            # int8 once, which has one byte per element.
            constants.update(node.outputs)
            constant_elements += prod(shape)
            limit = len(data) - constant_elements + prod(shape)
        if min(shape, default=0) < 1 or prod(shape) > limit:
            raise ValueError(f"a tensor of shape {shape!r:.60} is computed by {node.operator}")
        if node.operator in ("Conv", "Gemm"):
            weights = shapes[node.inputs[1]]
            macs += prod(shape) * prod(weights) // max(1, shape[1])
        elif node.operator == "MatMul":
            macs += prod(shape) * shapes[node.inputs[0]][-1]
        if len(node.outputs) != 1:
            raise ValueError(f"a node {node.operator} has {len(node.outputs)} outputs")
        _add(shapes, node.outputs[0], shape)
    if macs > MAX_MACS:
        raise ValueError(f"it needs {macs:.1e} multiplications for one image")
    if shapes.get(OUTPUT_NAME) != (1, classes):
        raise ValueError(f"its output has the shape {shapes.get(OUTPUT_NAME)}, not (1, {classes})")


def _check_value(
    values: Sequence[Value], name: str, data_type: int, sizes: tuple[int, ...]
) -> None:
    if len(values) != 1 or values[0].name != name or values[0].data_type != data_type:
        raise ValueError(f"it does not have {name!r} as its only tensor of this kind")
    batch, *others = values[0].shape or ("",)
    if not isinstance(batch, str) or tuple(others) != sizes:
        raise ValueError(f"{name} has the shape {values[0].shape!r:.60}, not (batch, *{sizes})")


def _add(shapes: Shapes, name: str, shape: Shape) -> None:
    if name in shapes:
        raise ValueError(f"two tensors have the name {name!r:.60}")
    shapes[name] = shape


def _shape_of(node: Node, shapes: Shapes, graph: OnnxGraph) -> Shape:
    rule = OPERATORS.get(node.operator)
    if rule is None:
        raise ValueError(f"it uses the operator {node.operator!r:.60}, which no graph of ours has")
    try:
        inputs = [shapes[name] for name in node.inputs]
        return rule(node, inputs, graph.weights)
    except (KeyError, IndexError, TypeError, ZeroDivisionError, struct.error) as error:
        raise ValueError(f"a node {node.operator} does not fit its inputs") from error


Rule = Callable[[Node, list[Shape], dict[str, Weight]], Shape]
"""Function of a node, the shapes of its inputs, and the weights of the graph."""


def _integers(node: Node, name: str, default: Sequence[int] | None = None) -> tuple[int, ...]:
    value = node.attributes.get(name, default)
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise TypeError(name)
    return tuple(value)


def _integer(node: Node, name: str, default: int) -> int:
    value = node.attributes.get(name, default)
    if not isinstance(value, int):
        raise TypeError(name)
    return value


def _same(node: Node, inputs: list[Shape], weights: dict[str, Weight]) -> Shape:
    return inputs[0]


def _broadcast(node: Node, inputs: list[Shape], weights: dict[str, Weight]) -> Shape:
    if len(inputs) != 2:
        raise TypeError("operands")
    first, second = inputs
    rank = max(len(first), len(second))
    pairs = list(zip((1,) * (rank - len(first)) + first, (1,) * (rank - len(second)) + second))
    if any(a != b and 1 not in (a, b) for a, b in pairs):
        raise TypeError("shapes")
    return tuple(max(a, b) for a, b in pairs)


def _transpose(node: Node, inputs: list[Shape], weights: dict[str, Weight]) -> Shape:
    order = _integers(node, "perm")
    if sorted(order) != list(range(len(inputs[0]))):
        raise TypeError("perm")
    return tuple(inputs[0][axis] for axis in order)


def _windows(node: Node, spatial: Shape, kernel: Shape) -> Shape:
    """Return the numbers of positions of a kernel, in ONNX's formula of Conv and MaxPool."""
    rank = len(spatial)
    pads = _integers(node, "pads", (0,) * 2 * rank)
    strides = _integers(node, "strides", (1,) * rank)
    dilations = _integers(node, "dilations", (1,) * rank)
    if node.attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise TypeError("auto_pad")
    if min(*strides, *dilations, *kernel) < 1 or min(pads) < 0 or len(pads) != 2 * rank:
        raise TypeError("a window")
    up = _integer(node, "ceil_mode", 0)
    return tuple(
        (
            size + pads[axis] + pads[axis + rank] - dilations[axis] * (kernel[axis] - 1) - 1
            + (strides[axis] - 1 if up else 0)
        )
        // strides[axis] + 1
        for axis, size in enumerate(spatial)
    )  # fmt: skip


def _conv(node: Node, inputs: list[Shape], weights: dict[str, Weight]) -> Shape:
    (batch, channels, *spatial), (filters, depth, *kernel) = inputs[:2]
    if depth * _integer(node, "group", 1) != channels or len(kernel) != len(spatial):
        raise TypeError("channels")
    if _integers(node, "kernel_shape", kernel) != tuple(kernel):
        raise TypeError("kernel_shape")
    return batch, filters, *_windows(node, tuple(spatial), tuple(kernel))


def _pool(node: Node, inputs: list[Shape], weights: dict[str, Weight]) -> Shape:
    batch, channels, *spatial = inputs[0]
    kernel = _integers(node, "kernel_shape")
    if len(kernel) != len(spatial):
        raise TypeError("kernel_shape")
    return batch, channels, *_windows(node, tuple(spatial), kernel)


def _global_pool(node: Node, inputs: list[Shape], weights: dict[str, Weight]) -> Shape:
    return inputs[0][:2] + (1,) * (len(inputs[0]) - 2)


def _flatten(node: Node, inputs: list[Shape], weights: dict[str, Weight]) -> Shape:
    axis = _integer(node, "axis", 1)
    return prod(inputs[0][:axis]), prod(inputs[0][axis:])


def _gemm(node: Node, inputs: list[Shape], weights: dict[str, Weight]) -> Shape:
    (rows, inner), (first, second) = inputs[:2]
    if _integer(node, "transA", 0):
        raise TypeError("transA")
    depth, columns = (second, first) if _integer(node, "transB", 0) else (first, second)
    if depth != inner:
        raise TypeError("shapes")
    return rows, columns


def _concat(node: Node, inputs: list[Shape], weights: dict[str, Weight]) -> Shape:
    axis, rank = _integer(node, "axis", 1), len(inputs[0])
    if not 0 <= axis < rank or any(len(shape) != rank for shape in inputs):
        raise TypeError("axis")
    total = sum(shape[axis] for shape in inputs)
    return (*inputs[0][:axis], total, *inputs[0][axis + 1 :])


def _pad(node: Node, inputs: list[Shape], weights: dict[str, Weight]) -> Shape:
    rank = len(inputs[0])
    if len(inputs) != 2:
        raise TypeError("axes")
    pads = struct.unpack(f"<{2 * rank}q", weights[node.inputs[1]].data)
    return tuple(size + pads[i] + pads[i + rank] for i, size in enumerate(inputs[0]))


def _space_to_depth(node: Node, inputs: list[Shape], weights: dict[str, Weight]) -> Shape:
    batch, channels, height, width = inputs[0]
    block = _integer(node, "blocksize", 0)
    return batch, channels * block * block, height // block, width // block


def _depth_to_space(node: Node, inputs: list[Shape], weights: dict[str, Weight]) -> Shape:
    batch, channels, height, width = inputs[0]
    block = _integer(node, "blocksize", 0)
    if channels % block**2:
        raise TypeError("blocksize")
    return batch, channels // block**2, height * block, width * block


def _numbers(name: str, weights: dict[str, Weight]) -> tuple[int, ...]:
    weight = weights[name]
    return struct.unpack(f"<{prod(weight.shape)}q", weight.data)


def _axes(node: Node, rank: int, weights: dict[str, Weight]) -> set[int]:
    axes = _numbers(node.inputs[1], weights)
    if not all(-rank <= axis < rank for axis in axes):
        raise TypeError("axes")
    return {axis % rank for axis in axes}


def _slice(node: Node, inputs: list[Shape], weights: dict[str, Weight]) -> Shape:
    names, shape = node.inputs, list(inputs[0])
    if len(names) < 3:
        raise TypeError("ends")
    starts, ends = (_numbers(name, weights) for name in names[1:3])
    axes = _numbers(names[3], weights) if len(names) > 3 else tuple(range(len(starts)))
    steps = _numbers(names[4], weights) if len(names) > 4 else (1,) * len(starts)
    rank = len(shape)
    counts = {len(starts), len(ends), len(axes), len(steps), len({axis % rank for axis in axes})}
    if len(counts) != 1 or not all(-rank <= axis < rank for axis in axes) or min(steps) < 1:
        raise TypeError("axes")
    for axis, start, end, step in zip(axes, starts, ends, steps):
        shape[axis] = len(range(shape[axis])[start:end:step])
    return tuple(shape)


def _squeeze(node: Node, inputs: list[Shape], weights: dict[str, Weight]) -> Shape:
    axes = _axes(node, len(inputs[0]), weights)
    if any(inputs[0][axis] != 1 for axis in axes):
        raise TypeError("axes")
    return tuple(size for axis, size in enumerate(inputs[0]) if axis not in axes)


def _unsqueeze(node: Node, inputs: list[Shape], weights: dict[str, Weight]) -> Shape:
    rank = len(inputs[0]) + prod(inputs[1])
    axes = _axes(node, rank, weights)
    sizes = iter(inputs[0])
    return tuple(1 if axis in axes else next(sizes) for axis in range(rank))


def _reduce(node: Node, inputs: list[Shape], weights: dict[str, Weight]) -> Shape:
    rank = len(inputs[0])
    reduced = _axes(node, rank, weights)
    if _integer(node, "keepdims", 1):
        return tuple(1 if i in reduced else size for i, size in enumerate(inputs[0]))
    return tuple(size for i, size in enumerate(inputs[0]) if i not in reduced)


def _matrices(node: Node, inputs: list[Shape], weights: dict[str, Weight]) -> Shape:
    first, second = inputs
    if len(first) < 2 or len(second) < 2 or first[-1] != second[-2]:
        raise TypeError("shapes")
    batch = _broadcast(node, [first[:-2] or (1,), second[:-2] or (1,)], weights)
    return (*batch[len(batch) - max(len(first), len(second)) + 2 :], first[-2], second[-1])


def _reshape(node: Node, inputs: list[Shape], weights: dict[str, Weight]) -> Shape:
    target = struct.unpack(f"<{inputs[1][0]}q", weights[node.inputs[1]].data)
    total, known = prod(inputs[0]), prod(size for size in target if size != -1)
    shape = tuple(total // known if size == -1 else size for size in target)
    if min(target) < -1 or 0 in target or target.count(-1) > 1 or prod(shape) != total:
        raise TypeError("shape")
    return shape


def _gather(node: Node, inputs: list[Shape], weights: dict[str, Weight]) -> Shape:
    rank = len(inputs[0])
    axis = _integer(node, "axis", 0)
    if not -rank <= axis < rank or node.inputs[1] not in weights:
        raise TypeError("axis")
    axis %= rank
    return (*inputs[0][:axis], *inputs[1], *inputs[0][axis + 1 :])


OPERATORS: dict[str, Rule] = {
    "Abs": _same,
    "Add": _broadcast,
    "AveragePool": _pool,
    "Cast": _same,
    "Clip": _same,
    "Concat": _concat,
    "Conv": _conv,
    "DepthToSpace": _depth_to_space,
    "DequantizeLinear": _same,
    "Div": _broadcast,
    "Elu": _same,
    "Erf": _same,
    "Exp": _same,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": _same,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "HardSigmoid": _same,
    "HardSwish": _same,
    "InstanceNormalization": _same,
    "LRN": _same,
    "LayerNormalization": _same,
    "LeakyRelu": _same,
    "Log": _same,
    "LpNormalization": _same,
    "MatMul": _matrices,
    "Max": _broadcast,
    "MaxPool": _pool,
    "Min": _broadcast,
    "Mish": _same,
    "Mul": _broadcast,
    "Neg": _same,
    "PRelu": _broadcast,
    "Pad": _pad,
    "Pow": _broadcast,
    "QuantizeLinear": _same,
    "Reciprocal": _same,
    "ReduceL2": _reduce,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceMin": _reduce,
    "ReduceSum": _reduce,
    "Relu": _same,
    "Reshape": _reshape,
    "Selu": _same,
    "Sigmoid": _same,
    "Slice": _slice,
    "Softmax": _same,
    "Softplus": _same,
    "Softsign": _same,
    "SpaceToDepth": _space_to_depth,
    "Sqrt": _same,
    "Squeeze": _squeeze,
    "Sub": _broadcast,
    "Tanh": _same,
    "ThresholdedRelu": _same,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""The operators that an export writes, with the shape of their output."""
