"""ONNX files of small classifiers, as different exporters write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

SIDE, CLASSES = 16, 3


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)


def model(
    nodes: Sequence[NodeProto],
    constants: dict[str, np.ndarray],
    *,
    inputs: Sequence[tuple[str, int, Sequence[Any]]] = (
        ("x", TensorProto.FLOAT, ("n", 3, SIDE, SIDE)),
    ),
    outputs: Sequence[tuple[str, int, Sequence[Any] | None]] = (
        ("y", TensorProto.FLOAT, ("n", CLASSES)),
    ),
    opset: int = 17,
    domains: Sequence[tuple[str, int]] = (),
    **options: Any,
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    versions = [helper.make_opsetid("", opset), *(helper.make_opsetid(*some) for some in domains)]
    return helper.make_model(graph, opset_imports=versions, ir_version=8, **options)


def body(
    *,
    activation: NodeProto | None = None,
    before: Sequence[NodeProto] = (),
    first: str = "x",
    head: Sequence[NodeProto] | None = None,
    auto_pad: str | None = None,
) -> tuple[list[NodeProto], dict[str, np.ndarray]]:
    """Return nodes and constants of a convolution, an activation, a pooling and a classifier."""
    node = helper.make_node
    window: dict[str, Any] = {"auto_pad": auto_pad} if auto_pad else {"pads": (1, 1, 1, 1)}
    nodes = [
        *before,
        node("Conv", [first, "w", "b"], ["c"], strides=(2, 2), **window),
        activation or node("Relu", ["c"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        *(head or [node("Gemm", ["f", "v", "u"], ["y"], transB=1)]),
    ]
    constants = {
        "w": weights(8, 3, 3, 3), "b": weights(8, seed=1), "v": weights(CLASSES, 8, seed=2),
        "u": weights(CLASSES, seed=3),
    }  # fmt: skip
    return nodes, constants


def plain(**options: Any) -> ModelProto:
    return model(*body(), **options)


def readable_models() -> dict[str, ModelProto]:
    """Return models that an export reads, by what is special about them."""
    node, array = helper.make_node, np.array
    found = {f"opset {version}": plain(opset=version) for version in (11, 13, 17, 20, 23, 26)}
    for name, sizes in {
        "batch of one": (1, 3, SIDE, SIDE),
        "batch of four": (4, 3, SIDE, SIDE),
        "dynamic size": ("n", 3, "h", "w"),
        "sizes of zero": (0, 3, 0, 0),
    }.items():
        found[name] = plain(inputs=[("x", TensorProto.FLOAT, sizes)],
                            outputs=[("y", TensorProto.FLOAT, None)])  # fmt: skip
    nodes, constants = body()
    found["nodes in reverse order"] = model(nodes[::-1], constants)
    nhwc = node("Transpose", ["x"], ["t"], perm=(0, 3, 1, 2))
    last = [("x", TensorProto.FLOAT, ("n", SIDE, SIDE, 3))]
    found["channels last"] = model(*body(before=[nhwc], first="t"), inputs=last)
    cast = node("Cast", ["x"], ["t"], to=TensorProto.FLOAT)
    pixels = [("x", TensorProto.UINT8, ("n", 3, SIDE, SIDE))]
    found["pixels as uint8"] = model(*body(before=[cast], first="t"), inputs=pixels)
    for name in ("Softmax", "LogSoftmax"):
        head = [node("Gemm", ["f", "v", "u"], ["z"], transB=1), node(name, ["z"], ["y"], axis=1)]
        found[name.lower()] = model(*body(head=head))
    for kind in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        found[f"padding {kind.lower()}"] = model(*body(auto_pad=kind))
    nodes, constants = body(activation=node("Clip", ["c", "low", "high"], ["r"]))
    limits = {"low": array(0, np.float32), "high": array(0.8, np.float32)}
    found["relu6"] = model(nodes, constants | limits)
    nodes, constants = body(activation=node("Clip", ["c", "", "high"], ["r"]))
    found["only an upper limit"] = model(nodes, constants | {"high": limits["high"]})
    for name in ("HardSwish", "HardSigmoid", "Sigmoid", "LeakyRelu", "Elu", "Tanh"):
        found[name.lower()] = model(*body(activation=node(name, ["c"], ["r"])))
    swish = node("Mul", ["c", "s"], ["r"])
    nodes, constants = body(activation=swish)
    nodes.insert(1, node("Sigmoid", ["c"], ["s"]))
    found["swish"] = model(nodes, constants)
    head = [node("MatMul", ["f", "vt"], ["m"]), node("Add", ["m", "u"], ["y"])]
    nodes, constants = body(head=head)
    found["matrix product and sum"] = model(nodes, constants | {"vt": constants["v"].T.copy()})
    head = [node("Gemm", ["f", "vt", "u"], ["y"], alpha=0.5, beta=2.0)]
    nodes, constants = body(head=head)
    found["factors of the classifier"] = model(nodes, constants | {"vt": constants["v"].T.copy()})
    nodes, constants = body()
    nodes[2:4] = [node("ReduceMean", ["r"], ["f"], axes=(2, 3), keepdims=0)]
    found["mean over the maps"] = model(nodes, constants)
    nodes, constants = body()
    nodes[3] = node("Squeeze", ["p", "axes"], ["f"])
    found["squeeze"] = model(nodes, constants | {"axes": array([2, 3])})
    nodes, constants = body()
    nodes[3:4] = [
        node("Shape", ["p"], ["s"]), node("Gather", ["s", "zero"], ["n0"]),
        node("Unsqueeze", ["n0", "zeros"], ["n1"]), node("Concat", ["n1", "rest"], ["to"], axis=0),
        node("Reshape", ["p", "to"], ["f"]),
    ]  # fmt: skip
    shape = {"zero": array(0), "zeros": array([0]), "rest": array([-1])}
    found["shape arithmetic"] = model(nodes, constants | shape)
    nodes, constants = body()
    nodes[1:2] = [
        node("BatchNormalization", ["c", "g", "h", "mu", "var"], ["n"]), node("Relu", ["n"], ["r"]),
    ]  # fmt: skip
    norm = {"g": weights(8, seed=4), "h": weights(8, seed=5), "mu": weights(8, seed=6),
            "var": np.abs(weights(8, seed=7)) + np.float32(0.5)}  # fmt: skip
    found["batch norm after a convolution"] = model(nodes, constants | norm)
    nodes, constants = body()
    nodes[2:2] = [node("BatchNormalization", ["r", "g", "h", "mu", "var"], ["n"])]
    nodes[3].input[0] = "n"
    found["batch norm after a relu"] = model(nodes, constants | norm)
    nodes, constants = body()
    del constants["b"]
    nodes[0].input.pop()
    found["no bias"] = model(nodes, constants)
    gray = [("x", TensorProto.FLOAT, ("n", 1, SIDE, SIDE))]
    nodes, constants = body()
    found["grey"] = model(nodes, constants | {"w": weights(8, 1, 3, 3)}, inputs=gray)
    nodes, constants = body()
    nodes[1:1] = [node("Dropout", ["c"], ["d"]), node("Identity", ["d"], ["i"])]
    nodes[3].input[0] = "i"
    found["dropout and identity"] = model(nodes, constants)
    nodes, constants = body()
    nodes[1:1] = [node("Conv", ["c", "w2", "b"], ["e"])]
    nodes[2].input[0] = "e"
    found["weights that two layers share"] = model(nodes, constants | {"w2": weights(8, 8, 1, 1)})
    nodes, constants = body()
    nodes[2:2] = [node("AveragePool", ["r"], ["a"], kernel_shape=(2, 2))]
    nodes[3].input[0] = "a"
    found["a node and a weight of one name"] = plain()
    found["a node and a weight of one name"].graph.node[0].name = "w"
    found["average pooling"] = model(nodes, constants)
    for name, kernel, stride, pad in (
        ("whole maps", 99, 99, 0), ("parts of windows", 3, 2, 0), ("zeros", 3, 2, 1),
    ):  # fmt: skip
        nodes, constants = body()
        nodes[2:2] = [
            node(
                "AveragePool", ["r"], ["a"], kernel_shape=(kernel,) * 2, strides=(stride,) * 2,
                pads=(pad,) * 4, ceil_mode=1, count_include_pad=1,
            )
        ]  # fmt: skip
        nodes[3].input[0] = "a"
        found[f"average pooling of {name}"] = model(nodes, constants, opset=20)
    found["constants as nodes"] = _with_constant_nodes(plain())
    found["initialisers among the inputs"] = _with_listed_weights(plain())
    found["a local function"] = _with_function()
    found["names that are no identifiers"] = plain()
    for index, value in enumerate(found["names that are no identifiers"].graph.node):
        value.name = f"a/b:{index} \x1b[2J"
    nodes, constants = body()
    nodes[3] = node("Reshape", ["p", "to"], ["f"])
    found["a shape for one image"] = model(
        nodes, constants | {"to": array([1, -1])},
        inputs=[("x", TensorProto.FLOAT, (1, 3, SIDE, SIDE))],
        outputs=[("y", TensorProto.FLOAT, (1, CLASSES))],
    )  # fmt: skip
    inserted: dict[str, tuple[str, list[str], dict[str, Any]]] = {
        "zeros around the maps": ("Pad", ["r", "zeros around", "zero", "axes"], {}),
        "mirrored edges": ("Pad", ["r", "zeros around", "", "axes"], {"mode": "reflect"}),
        "slopes of channels": ("PRelu", ["r", "slopes"], {}),
        "every second value": ("Slice", ["r", "first", "last", "axes", "steps"], {}),
        "values moved to the maps": ("Unsqueeze", ["r", "front"], {}),
        "a norm over channels": ("LRN", ["r"], {"size": 3}),
        "a largest value": ("Min", ["r", "largest"], {}),
        "a power": ("Pow", ["r", "largest"], {}),
    }
    for name, (operator, inputs, attributes) in inserted.items():
        nodes, constants = body()
        nodes[2:2] = [node(operator, inputs, ["m"], **attributes)]
        nodes[3].input[0] = "m"
        if operator == "Unsqueeze":
            nodes[3:3] = [node("Softplus", ["m"], ["o"]), node("Squeeze", ["o", "front"], ["s"])]
            nodes[5].input[0] = "s"
        found[name] = model(nodes, constants | {
            "zeros around": array([1, 1, 1, 1]), "zero": array(0, np.float32),
            "axes": array([2, -1]), "slopes": weights(8, 1, 1, seed=4), "first": array([0, 1]),
            "last": array([8, 1 << 40]), "steps": array([2, 2]), "front": array([1]),
            "largest": array(0.8, np.float32),
        }, opset=20)  # fmt: skip
    nodes, constants = body()
    nodes[2:3] = [
        node("DepthToSpace", ["r"], ["d"], blocksize=2), node("ReduceMax", ["d"], ["k"], axes=(1,)),
        node("Sigmoid", ["k"], ["a"]), node("Mul", ["d", "a"], ["g"]),
        node("GlobalAveragePool", ["g"], ["p"]),
    ]  # fmt: skip
    found["attention to places"] = model(nodes, constants | {"v": weights(CLASSES, 2, seed=2)})
    nodes, constants = body()
    maps = {"v": constants["v"].reshape(CLASSES, 8, 1, 1)}
    nodes[3:] = [node("Conv", ["p", "v", "u"], ["y"])]
    found["classes as maps"] = model(
        nodes, constants | maps, outputs=[("y", TensorProto.FLOAT, ("n", CLASSES, 1, 1))]
    )
    for name in ("softmax", "sigmoid"):
        nodes[3:] = [
            node("Conv", ["p", "v", "u"], ["z"]), node(name.capitalize(), ["z"], ["t"]),
            node("Flatten", ["t"], ["y"]),
        ]  # fmt: skip
        if name == "softmax":
            nodes[4].attribute.append(helper.make_attribute("axis", 1))
        found[f"{name} of maps"] = model(nodes, constants | maps)
    found["numbers that are no bytes"] = plain()
    for tensor in found["numbers that are no bytes"].graph.initializer:
        values = numpy_helper.to_array(tensor)
        numbers = helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, values.ravel())
        tensor.CopyFrom(numbers)
    found["version 3 of the format"] = _with_listed_weights(plain(opset=11))
    found["version 3 of the format"].ir_version = 3
    nodes, constants = body()
    nodes[2:2] = [
        node("Split", ["r", "parts"], ["k", "l"], axis=1),
        node("Concat", ["l", "k"], ["m"], axis=1),
    ]
    nodes[4].input[0] = "m"
    found["parts of channels"] = model(nodes, constants | {"parts": array([3, 5])})
    casts = node("Cast", ["c"], ["d"], to=TensorProto.DOUBLE), node("Sigmoid", ["d"], ["s"])
    nodes, constants = body(activation=node("Cast", ["s"], ["r"], to=TensorProto.FLOAT))
    nodes[1:1] = casts
    found["float64 inside"] = model(nodes, constants)
    found["a class token"] = _transformer("n")
    found["a class token for one image"] = _transformer(1)
    nodes, constants = body()
    nodes[4:] = [
        node("Shape", ["f"], ["s"]), node("Expand", ["row", "s"], ["rows"]),
        node("Add", ["f", "rows"], ["g"]), node("Gemm", ["g", "v", "u"], ["y"], transB=1),
    ]  # fmt: skip
    found["a row for each image"] = model(nodes, constants | {"row": weights(1, 8, seed=4)})
    return found


def half(original: ModelProto) -> ModelProto:
    """Return a copy in float16."""
    copy = ModelProto()
    copy.CopyFrom(original)
    for tensor in copy.graph.initializer:
        rounded = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    for value in (*copy.graph.input, *copy.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return copy


def save_with_weights_beside(original: ModelProto, path: Path) -> None:
    onnx.save(original, path, save_as_external_data=True, location="w.bin", size_threshold=0)


def _transformer(batch: str | int) -> ModelProto:
    """Return a vision transformer: patches, a class token, attention, and a classifier."""
    node, tokens = helper.make_node, (SIDE // 4) ** 2
    rows = [] if batch == 1 else [
        node("Shape", ["patches"], ["s"]), node("Gather", ["s", "zero"], ["n"]),
        node("Concat", ["n", "rest"], ["many"], axis=0), node("Expand", ["token", "many"], ["row"]),
    ]  # fmt: skip
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], strides=(4, 4)),
        node("Reshape", ["c", "flat"], ["r"]),
        node("Transpose", ["r"], ["patches"], perm=(0, 2, 1)),
        *rows,
        node("Concat", ["row" if rows else "token", "patches"], ["j"], axis=1),
        node("Add", ["j", "positions"], ["t"]),
        node("MatMul", ["t", "q"], ["query"]),
        node("Transpose", ["t"], ["key"], perm=(0, 2, 1)),
        node("MatMul", ["query", "key"], ["scores"]),
        node("Softmax", ["scores"], ["shares"], axis=-1),
        node("MatMul", ["shares", "t"], ["mixed"]),
        node("Add", ["mixed", "t"], ["sum"]),
        node("Gather", ["sum", "first"], ["f"], axis=1),
        node("Gemm", ["f", "v", "u"], ["y"], transB=1),
    ]
    constants = {
        "w": weights(8, 3, 4, 4), "b": weights(8, seed=1), "flat": np.array([-1, 8, tokens]),
        "zero": np.array([0]), "rest": np.array([1, 8]), "token": weights(1, 1, 8, seed=4),
        "positions": weights(1, tokens + 1, 8, seed=5), "q": weights(8, 8, seed=6),
        "first": np.array(0), "v": weights(CLASSES, 8, seed=2), "u": weights(CLASSES, seed=3),
    }  # fmt: skip
    return model(
        nodes, constants,
        inputs=[("x", TensorProto.FLOAT, (batch, 3, SIDE, SIDE))],
        outputs=[("y", TensorProto.FLOAT, (batch, CLASSES))],
    )  # fmt: skip


def _with_constant_nodes(original: ModelProto) -> ModelProto:
    constants = [
        helper.make_node("Constant", [], [tensor.name], value=tensor)
        for tensor in original.graph.initializer
    ]
    del original.graph.initializer[:]
    nodes = list(original.graph.node)
    del original.graph.node[:]
    original.graph.node.extend([*constants, *nodes])
    return original


def _with_listed_weights(original: ModelProto) -> ModelProto:
    for tensor in original.graph.initializer:
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        original.graph.input.append(value)
    return original


def _with_function() -> ModelProto:
    swish = helper.make_function(
        "local", "Swish", ["a"], ["o"],
        [helper.make_node("Sigmoid", ["a"], ["s"]), helper.make_node("Mul", ["a", "s"], ["o"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    call = helper.make_node("Swish", ["c"], ["r"], domain="local")
    return model(*body(activation=call), domains=[("local", 1)], functions=[swish])
