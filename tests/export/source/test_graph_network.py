"""ONNX files as sources: what they compute, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import resdeploy
from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.graph_check import check_onnx
from resdeploy.bundle.manifest import Encoding
from resdeploy.calibration.observer import observe
from resdeploy.errors import CheckpointError, ExportError, ResdeployError
from resdeploy.export.graph.coverage import coverage
from resdeploy.export.graph.placement import place
from resdeploy.export.graph.to_onnx import OPSET, to_bytes, with_outputs
from resdeploy.export.quantization.calibrate import choose_ranges
from resdeploy.export.source.graph_network import load_graph_network
from resdeploy.images.preprocessing import Channels, Preprocessing
from resdeploy.statistics import Verdict, sqnr_db
from tests.export.source.graphs import (
    CLASSES,
    SIDE,
    body,
    half,
    model,
    plain,
    readable_models,
    save_with_weights_beside,
    weights,
)

MODELS = readable_models()
# Sums in another order differ by a few units of the last of float32's 24 bits.
TOLERANCE = 2e-6
PROBABILITIES = ("softmax", "sigmoid of")


def saved(proto: ModelProto, folder: Path, name: str = "net.onnx") -> Path:
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return path


def pixels(count: int = 3, channels: int = 3) -> np.ndarray:
    shape = (count, SIDE, SIDE, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return np.repeat(images[..., :1], 3, axis=3) if channels == 1 else images


def expected(proto: ModelProto, images: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Run the file itself on images that NumPy normalised; return the outputs."""
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (value,) = session.get_inputs()
    scaled = images.astype(np.float64) / (255 // preprocessing.value_range)
    values = (scaled - preprocessing.mean) / preprocessing.std
    if value.shape[1] == 1:
        values = values[..., :1]
    if value.type == "tensor(uint8)":
        values = images.astype(np.float64)
    if value.shape[3] not in (1, 3):
        values = values.transpose(0, 3, 1, 2)
    dtype = np.uint8 if value.type == "tensor(uint8)" else np.float32
    batch = value.shape[0] if isinstance(value.shape[0], int) else 1
    outputs = []
    for image in values.astype(dtype):
        repeated = np.repeat(image[None], batch, axis=0)
        outputs.append(np.asarray(session.run(None, {value.name: repeated})[0])[:1])
    return np.concatenate(outputs).reshape(len(images), -1)


def run(graph: bytes, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images})
    return np.asarray(logits)


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_and_the_reference_compute_what_the_file_does(name: str, tmp_path: Path) -> None:
    proto = MODELS[name]
    network = load_graph_network(saved(proto, tmp_path))
    channels = network.file.input.channels
    preprocessing = Preprocessing.standard(SIDE)
    if channels == 1:
        preprocessing = Preprocessing(
            image_size=SIDE, channels=Channels.GRAY, mean=(0.4,), std=(0.2,)
        )
    if name == "pixels as uint8":
        preprocessing = Preprocessing(
            image_size=SIDE, value_range=255, mean=(0.0,) * 3, std=(1.0,) * 3
        )
    images = pixels(channels=channels)
    classifier = network.classifier(preprocessing)
    graph = to_bytes(classifier.to_onnx())
    check_onnx(graph, opset=OPSET, image_size=(SIDE, SIDE), classes=CLASSES)
    logits = expected(proto, images, preprocessing)
    if name.startswith("softmax"):
        logits, found = np.log(logits), run(graph, images)
        logits += found.mean(axis=1, keepdims=True) - logits.mean(axis=1, keepdims=True)
    elif name == "logsoftmax":
        found = run(graph, images)
        logits += found.mean(axis=1, keepdims=True) - logits.mean(axis=1, keepdims=True)
    elif name.startswith("sigmoid of"):
        logits = np.log(logits / (1 - logits))
    scale = np.abs(logits).max()
    # float32 probabilities lose a few bits in the logarithm of the probabilities.
    tolerance = 10 * TOLERANCE if name.startswith(PROBABILITIES) else TOLERANCE
    np.testing.assert_allclose(run(graph, images), logits, rtol=0, atol=tolerance * scale)
    reference = classifier.logits(images)
    if "softmax" in name:
        logits = logits + (reference - logits).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(reference, logits, rtol=0, atol=tolerance * scale)


def test_float16_is_computed_in_float32(tmp_path: Path) -> None:
    network = load_graph_network(saved(half(plain()), tmp_path))
    assert "float16" in network.notes[0]
    graph = network.classifier(Preprocessing.standard(SIDE)).to_onnx()
    floats = [value.dtype for value in graph.graph.initializers.values()]
    assert ir.DataType.FLOAT16 not in floats
    exact = load_graph_network(saved(plain(), tmp_path)).classifier(Preprocessing.standard(SIDE))
    images = pixels()
    # Weights of 11 bits change a logit by less than a hundredth of the largest one.
    np.testing.assert_allclose(
        run(to_bytes(graph), images), exact.logits(images), rtol=0,
        atol=0.01 * np.abs(exact.logits(images)).max(),
    )  # fmt: skip


def test_bgr_is_a_part_of_the_first_weights(tmp_path: Path) -> None:
    network = load_graph_network(saved(plain(), tmp_path))
    mean, std = (0.1, 0.2, 0.3), (0.2, 0.3, 0.4)
    bgr = Preprocessing(image_size=SIDE, channels=Channels.BGR, mean=mean, std=std)
    classifier = network.classifier(bgr)
    graph = classifier.to_onnx()
    assert {node.op_type for node in graph.graph} <= {
        "Cast", "Transpose", "Mul", "Add", "Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm",
    }  # fmt: skip
    images = pixels()
    rgb = Preprocessing(image_size=SIDE, mean=mean, std=std)
    logits = expected(plain(), images[..., ::-1], rgb)
    np.testing.assert_allclose(run(to_bytes(graph), images), logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(classifier.logits(images), logits, rtol=1e-5, atol=1e-5)


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    save_with_weights_beside(plain(), tmp_path / "net.onnx")
    images, settings = pixels(), Preprocessing.standard(SIDE)
    found, exact = (
        load_graph_network(path).classifier(settings).logits(images)
        for path in (tmp_path / "net.onnx", saved(plain(), tmp_path, "a.onnx"))
    )
    np.testing.assert_array_equal(found, exact)


def test_what_the_file_states_is_known(tmp_path: Path) -> None:
    fixed = load_graph_network(saved(plain(), tmp_path, "my net.onnx"))
    assert (fixed.name, fixed.classes, fixed.labels) == ("my net", CLASSES, None)
    (stated,) = fixed.stated_settings()
    assert (stated.settings.image_size, stated.place) == (SIDE, "the graph")
    with pytest.raises(CheckpointError, match="takes images of 16x16 pixels only"):
        fixed.classifier(Preprocessing.standard(32))
    with pytest.raises(CheckpointError, match=r"of 3 channels, but .* gives 1: gray"):
        fixed.classifier(
            Preprocessing(image_size=SIDE, channels=Channels.GRAY, mean=(0.4,), std=(0.2,))
        )
    pixels = load_graph_network(saved(MODELS["pixels as uint8"], tmp_path))
    (uint8,) = pixels.stated_settings()
    assert (uint8.settings.value_range, uint8.settings.mean) == (255, (0.0, 0.0, 0.0))
    with pytest.raises(
        CheckpointError, match=r"normalises them itself, but .* mean 0\.485,"
    ) as told:
        pixels.classifier(Preprocessing.standard(SIDE))
    assert str(told.value.hint).startswith("leave --mean, --std and --value-range out")
    dynamic = load_graph_network(saved(MODELS["dynamic size"], tmp_path))
    assert dynamic.stated_settings()[0].settings.image_size is None
    assert dynamic.classifier(Preprocessing.standard(24)).to_onnx().graph.inputs[0].shape == (
        ir.SymbolicDim("batch"), 24, 24, 3,
    )  # fmt: skip
    assert load_graph_network(saved(MODELS["softmax"], tmp_path)).notes == (
        "the output is a softmax; the logits of the bundle are its input",
    )


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
    names = helper.make_tensor("names", TensorProto.STRING, [CLASSES], [b"a", b"b", b"c"])
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


@pytest.mark.parametrize("encoding", [Encoding.CPU, Encoding.TENSORRT])
@pytest.mark.parametrize("name", MODELS)
def test_every_convolution_is_quantised(name: str, encoding: Encoding, tmp_path: Path) -> None:
    network = load_graph_network(saved(MODELS[name], tmp_path))
    channels = network.file.input.channels
    settings = Preprocessing(
        image_size=SIDE, channels=network.default_channels, mean=(0.45,) * channels,
        std=(0.25,) * channels,
    )  # fmt: skip
    if network.file.input.is_uint8:
        settings = replace(settings, value_range=255, mean=(0.0,) * 3, std=(1.0,) * 3)
    graph = network.classifier(settings).to_onnx()
    images = pixels(8, channels)
    tensors = [edge.range_of for edge in place(graph.graph, encoding)]
    statistics = observe(with_outputs(graph, tensors), tensors, [images])
    recipe = choose_ranges(statistics, "max", encoding, frozenset())
    quantised = recipe.apply(graph, half=False)
    found = coverage(quantised.graph, encoding)
    assert found.int8_convs == found.convs > 0
    exact, rounded = run(to_bytes(graph), images), run(to_bytes(quantised), images)
    # Random weights on noise: the ranges hold all values, so 8 bits give more than 20 dB.
    assert np.median(sqnr_db(exact, rounded)) > 20


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_classifier_of_images_is_refused(name: str, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    with pytest.raises((CheckpointError, ExportError), match=message) as caught:
        network = load_graph_network(saved(make(), tmp_path))
        classifier = network.classifier(Preprocessing.standard(SIDE))
        classifier.logits(pixels())
        classifier.to_onnx()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "only a pointer of Git LFS"),
        (b"<!doctype html><html>", "an HTML page"),
        (plain().SerializeToString()[:200], "or it is damaged"),
        (b"\x08\x08" + bytes(range(256)), "damaged|empty"),
    ],
)
def test_other_files_and_damaged_ones_are_named(content: bytes, what: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(ResdeployError, match=what):
        load_graph_network(path)


def test_sparse_weights_are_refused(tmp_path: Path) -> None:
    proto = plain()
    values = numpy_helper.from_array(np.ones(1, np.float32), "w2")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "w2_i")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    with pytest.raises(CheckpointError, match="sparse weights"):
        load_graph_network(saved(proto, tmp_path))


def test_the_names_of_nodes_are_unique_and_the_same_twice(tmp_path: Path) -> None:
    network = load_graph_network(saved(MODELS["swish"], tmp_path))
    graphs = [network.classifier(Preprocessing.standard(SIDE)).to_onnx() for _ in range(2)]
    names = [[node.name for node in graph.graph] for graph in graphs]
    assert names[0] == names[1]
    assert len(set(names[0])) == len(names[0])
    assert to_bytes(graphs[0]) == to_bytes(graphs[1])
    assert onnx.load_from_string(to_bytes(graphs[0])).graph.name == "net"


def test_a_graph_of_a_bundle_is_exported_again(tiny_bundle: Bundle, tmp_path: Path) -> None:
    resdeploy.export(tiny_bundle.path / "fp32.onnx", tmp_path / "again.bundle")
    assert resdeploy.verify(tmp_path / "again.bundle").verdict is Verdict.REPRODUCED
