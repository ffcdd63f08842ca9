"""ONNX files as sources: what they compute, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import ModelProto, helper, numpy_helper

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
    half,
    plain,
    readable_models,
    save_with_weights_beside,
)
from tests.export.source.refused_graphs import REFUSED

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
    copy = ModelProto.FromString(proto.SerializeToString())
    for size in copy.graph.input[0].type.tensor_type.shape.dim:
        if size.WhichOneof("value") == "dim_value" and not size.dim_value:
            size.dim_param = "n"  # ONNX Runtime takes a size of zero for a fixed one
    session = onnxruntime.InferenceSession(
        copy.SerializeToString(), providers=["CPUExecutionProvider"]
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
