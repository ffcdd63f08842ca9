"""ONNX files that an export refuses, with the message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tests.export.source.graphs import CLASSES, SIDE, body, model, plain, weights


def _detector() -> ModelProto:
    nodes, constants = body()
    return model(nodes[:2], constants, outputs=[("r", TensorProto.FLOAT, None)])


def _two_inputs() -> ModelProto:
    nodes, constants = body(before=[helper.make_node("Add", ["x", "z"], ["t"])], first="t")
    value = ("n", 3, SIDE, SIDE)
    return model(
        nodes, constants,
        inputs=[("x", TensorProto.FLOAT, value), ("z", TensorProto.FLOAT, value)],
    )  # fmt: skip


def _cycle() -> ModelProto:
    nodes, constants = body(before=[helper.make_node("Add", ["x", "c"], ["t"])], first="t")
    return model(nodes, constants)


def _control_flow() -> ModelProto:
    branch = helper.make_graph(
        [helper.make_node("Relu", ["c"], ["o"])], "b", [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)],
    )  # fmt: skip
    node = helper.make_node("If", ["yes"], ["r"], then_branch=branch, else_branch=branch)
    nodes, constants = body(activation=node)
    return model(nodes, constants | {"yes": np.array(True)})


def _constant_batch() -> ModelProto:
    nodes, constants = body()
    nodes[3:4] = [
        helper.make_node("Reshape", ["p", "to"], ["q"]),
        helper.make_node("Add", ["q", "noise"], ["f"]),
    ]
    constants |= {"to": np.array([2, 8]), "noise": weights(2, 8)}
    return model(nodes, constants, inputs=[("x", TensorProto.FLOAT, (2, 3, SIDE, SIDE))])


def _outside(location: str) -> ModelProto:
    proto = plain()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return proto


def _bomb() -> ModelProto:
    node = helper.make_node
    nodes, constants = body()
    nodes[1:1] = [
        node("ConstantOfShape", ["many"], ["o"]), node("ReduceSum", ["o"], ["s"], keepdims=0),
        node("Add", ["c", "s"], ["d"]),
    ]  # fmt: skip
    nodes[4].input[0] = "d"
    return model(nodes, constants | {"many": np.array([1 << 40])})


def _one_class() -> ModelProto:
    nodes, constants = body()
    constants |= {"v": weights(1, 8), "u": weights(1)}
    return model(nodes, constants, outputs=[("y", TensorProto.FLOAT, ("n", 1))])


def _quantised() -> ModelProto:
    node = helper.make_node
    before = [
        node("QuantizeLinear", ["x", "s"], ["q"]),
        node("DequantizeLinear", ["q", "s"], ["t"]),
    ]
    nodes, constants = body(before=before, first="t")
    return model(nodes, constants | {"s": np.array(0.1, np.float32)})


def _ends_in(*nodes: NodeProto, kind: int = TensorProto.FLOAT, **constants: Any) -> ModelProto:
    """Return a network with further nodes, from its logits `z` to its output `y`."""
    head = [helper.make_node("Gemm", ["f", "v", "u"], ["z"], transB=1), *nodes]
    body_nodes, weights_of_body = body(head=head)
    return model(body_nodes, weights_of_body | constants, outputs=[("y", kind, None)])


def _own_softmax() -> ModelProto:
    node = helper.make_node
    return _ends_in(
        node("Exp", ["z"], ["e"]), node("ReduceSum", ["e", "ones"], ["s"]),
        node("Div", ["e", "s"], ["y"]), ones=np.array([1]),
    )  # fmt: skip


def _lists() -> ModelProto:
    proto = _ends_in(helper.make_node("SequenceConstruct", ["z"], ["y"]))
    value = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    proto.graph.output[0].CopyFrom(value)
    return proto


def _names_as_output() -> ModelProto:
    node = helper.make_node
    proto = _ends_in(
        node("ArgMax", ["z"], ["i"], axis=1, keepdims=0), node("Gather", ["names", "i"], ["y"]),
        kind=TensorProto.STRING,
    )  # fmt: skip
    names = numpy_helper.from_array(np.array(["a", "b", "c"], dtype=object), "names")
    proto.graph.initializer.append(names)
    return proto


def _norm_of_a_batch() -> ModelProto:
    inputs = ["c", "g", "g", "g", "g"]
    norm = helper.make_node("BatchNormalization", inputs, ["r", "mu", "var"], training_mode=1)
    nodes, constants = body(activation=norm)
    return model(nodes, constants | {"g": np.ones(8, np.float32)})


def _dropout() -> ModelProto:
    nodes, constants = body(activation=helper.make_node("Dropout", ["c", "half", "yes"], ["r"]))
    return model(nodes, constants | {"half": np.array(0.5, np.float32), "yes": np.array(True)})


def _sparse_constant() -> ModelProto:
    values = numpy_helper.from_array(np.ones(1, np.float32))
    indices = numpy_helper.from_array(np.zeros(1, np.int64))
    sparse = helper.make_sparse_tensor(values, indices, [CLASSES])
    constant = helper.make_node("Constant", [], ["k"], sparse_value=sparse)
    return _ends_in(constant, helper.make_node("Add", ["z", "k"], ["y"]))


def _scikit_learn() -> ModelProto:
    node = helper.make_node("LinearClassifier", ["x"], ["y"], domain="ai.onnx.ml")
    return model([node], {}, inputs=[("x", TensorProto.FLOAT, ("n", 4))],
                 domains=[("ai.onnx.ml", 3)])  # fmt: skip


REFUSED: dict[str, tuple[Callable[[], ModelProto], str]] = {
    "two inputs": (_two_inputs, r"has 2 inputs \(x, z\)"),
    "a cycle": (_cycle, "its nodes form a cycle"),
    "two versions of the operators": (
        lambda: plain(domains=[("ai.onnx", 13)]), "names 2 versions of the operators: 13 and 17"
    ),
    "two outputs": (
        lambda: plain(outputs=[("y", TensorProto.FLOAT, None), ("f", TensorProto.FLOAT, None)]),
        r"has 2 outputs \(y, f\); a classifier has one",
    ),
    "maps as output": (_detector, r"has the shape .*, and not \(batch, classes\)"),
    "one class": (_one_class, r"has the shape .*, and not \(batch, classes\)"),
    "control flow": (_control_flow, r"contains control flow \(If\)"),
    "operator of another library": (
        lambda: model(*body(activation=helper.make_node("Gelu", ["c"], ["r"], domain="com.x")),
                      domains=[("com.x", 1)]),
        "uses the operator 'Gelu' of 'com.x'",
    ),
    "a class as output": (
        lambda: _ends_in(helper.make_node("ArgMax", ["z"], ["y"]), kind=TensorProto.INT64),
        "the output 'y' of .* is int64, and not logits in float",
    ),
    "names of classes as output": (_names_as_output, "is string, and not logits"),
    "lists as output": (_lists, "is sequence, and not logits"),
    "the largest logits": (
        lambda: _ends_in(helper.make_node("TopK", ["z", "k"], ["y", "i"]), k=np.array([2])),
        r"uses the operator 'TopK', which no graph of ours has",
    ),
    "a softmax of several operators": (_own_softmax, "are probabilities, not logits: .* is 1 for"),
    "percent": (
        lambda: _ends_in(helper.make_node("Softmax", ["z"], ["s"]),
                         helper.make_node("Mul", ["s", "k"], ["y"]), k=np.array([100], np.float32)),
        "are probabilities, not logits: their sum is 100",
    ),
    "batch norm of a training": (_norm_of_a_batch, "its BatchNormalization is that of a training"),
    "dropout of a training": (_dropout, "its Dropout is that of a training"),
    "random values": (
        lambda: model(*body(activation=helper.make_node("RandomUniformLike", ["c"], ["r"]))),
        "computes something else in each call: its RandomUniformLike",
    ),
    "a sparse constant": (_sparse_constant, "has sparse weights"),
    "quantised in each call": (
        lambda: model(*body(activation=helper.make_node("DynamicQuantizeLinear", ["c"],
                                                        ["r", "q", "t"]))),
        r"is quantised already \(DynamicQuantizeLinear\)",
    ),
    "an unknown window": (
        lambda: model(*body(activation=helper.make_node("LpPool", ["c"], ["r"],
                                                        kernel_shape=[2, 2]))),
        "cannot be exported, because .* uses the operator 'LpPool'",
    ),
    "operators that are too new": (
        lambda: model(*body(activation=helper.make_node("Swish", ["c"], ["r"])), opset=24),
        "the operators of version 24 cannot be converted to version 20: .* of Swish",
    ),
    "a weight that is no number": (
        lambda: model(body()[0], body()[1] | {"u": np.full(CLASSES, np.nan, np.float32)}),
        "the logits of .* are not finite numbers",
    ),
    "scikit-learn": (_scikit_learn, "uses the operator 'LinearClassifier' of 'ai.onnx.ml'"),
    "weights above the folder": (lambda: _outside("../w.bin"), "keeps weights outside of its fol"),
    "weights anywhere": (lambda: _outside("/etc/passwd"), "keeps weights outside of its folder"),
    "weights in memory": (lambda: _outside("*/_ORT_MEM_ADDR_/*"), "which is not there"),
    "weights that are missing": (lambda: _outside("w.bin"), "keeps weights in 'w.bin', which is n"),
    "quantised already": (_quantised, r"is quantised already \(QuantizeLinear\)"),
    "old operators": (lambda: plain(opset=9), "uses version 9 of the operators; 11 to"),
    "future operators": (lambda: plain(opset=99), "uses version 99 of the operators"),
    "fixed numbers of images": (_constant_batch, "depends on the number of images|cannot be conv"),
    "a vast constant": (_bomb, "computes a tensor of 1099511627776 values"),
    "four channels": (
        lambda: plain(inputs=[("x", TensorProto.FLOAT, ("n", 4, SIDE, SIDE))]),
        r"is float \(\?, 4, 16, 16\), and not images with 3 channels or 1",
    ),
    "integers as input": (
        lambda: plain(inputs=[("x", TensorProto.INT64, ("n", 3, SIDE, SIDE))]), "is int64"
    ),
    "no images": (lambda: plain(inputs=[("x", TensorProto.FLOAT, ("n", 64))]), r"float \(\?, 64\)"),
    "wrong shapes": (
        lambda: model(body()[0], body()[1] | {"w": weights(8, 5, 3, 3)}), "not valid ONNX|cannot"
    ),
    "an unknown operator": (
        lambda: model(*body(activation=helper.make_node("Foo", ["c"], ["r"]))), "cannot|not valid"
    ),
    "an empty graph": (lambda: model([], {}), "is not an ONNX file, or it is empty"),
}  # fmt: skip
