"""Tests of the FP32 graph: parity with PyTorch, batches, names and metadata."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from PIL import Image

from resdeploy.bundle.manifest import Encoding
from resdeploy.errors import ExportError
from resdeploy.export.graph.coverage import coverage
from resdeploy.export.graph.to_onnx import (
    IR_VERSION,
    OPSET,
    fold_batch_norm,
    to_bytes,
    to_onnx,
    with_outputs,
)
from resdeploy.images.preprocessing import Channels, Preprocessing
from resdeploy.runtime.backends.onnxruntime.cpu import OnnxRuntimeCpu
from resdeploy.runtime.verification.golden_check import run_batches
from resdeploy.train.model.architecture import Architecture, Shortcut
from tests.export.conftest import Exported, export_network
from tests.samples import FAMILY, TINY, make_classifier

# Required absolute accuracy for logits within +-10; the measured error is at most 1e-5.
PARITY = 1e-4
BATCHES = (1, 2, 7, 64)


@pytest.fixture(scope="module")
def backend(resnet34: Exported) -> OnnxRuntimeCpu:
    return OnnxRuntimeCpu(to_bytes(resnet34.model), Encoding.FLOAT)


def test_logits_match_pytorch(resnet34: Exported, backend: OnnxRuntimeCpu) -> None:
    expected = resnet34.pytorch(resnet34.images)
    assert np.abs(expected).max() > 1  # otherwise the tolerance is meaningless
    np.testing.assert_allclose(backend.run(resnet34.images), expected, rtol=0, atol=PARITY)


@pytest.mark.parametrize("value", [0, 255])
def test_logits_of_constant_images_match_pytorch(
    resnet34: Exported, backend: OnnxRuntimeCpu, value: int
) -> None:
    images = np.full_like(resnet34.images[:2], value)
    np.testing.assert_allclose(backend.run(images), resnet34.pytorch(images), rtol=0, atol=PARITY)


def test_logits_do_not_depend_on_the_batch_size(
    resnet34: Exported, backend: OnnxRuntimeCpu
) -> None:
    reference = run_batches(backend, resnet34.images, batch=1)
    for batch in BATCHES[1:]:
        logits = run_batches(backend, resnet34.images, batch=batch)
        np.testing.assert_allclose(logits, reference, rtol=0, atol=PARITY)


@pytest.mark.parametrize("batch", BATCHES)
def test_identical_rows_give_identical_logits(
    resnet34: Exported, backend: OnnxRuntimeCpu, batch: int
) -> None:
    logits = backend.run(np.repeat(resnet34.images[:1], batch, axis=0))
    np.testing.assert_array_equal(logits, np.repeat(logits[:1], batch, axis=0))


@pytest.mark.parametrize("shortcut", [Shortcut.A, Shortcut.C, Shortcut.PLAIN])
def test_logits_of_the_papers_variants_match_pytorch(
    shortcut: Shortcut, resnet34: Exported
) -> None:
    classifier = make_classifier(Architecture(classes=4, blocks=(2, 1, 1, 1), shortcut=shortcut))
    graph = to_bytes(to_onnx(classifier, 64))
    images = resnet34.images[:7]
    with torch.inference_mode():
        expected = classifier(torch.from_numpy(images)).numpy()
    logits = OnnxRuntimeCpu(graph, Encoding.FLOAT).run(images)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("member", ["bottleneck", "grouped-concat"])
def test_the_graph_is_about_as_near_to_float64_as_pytorch(member: str) -> None:
    """Compare by the rounding errors of float32: how large they are depends on the weights.

    With random weights, PyTorch's own logits differ from those in float64 by 1.0e-4 for ResNet-50
    and 0.9e-4 for ResNeXt-50 (64 pixels, 32 photographs, random gains, logits with a deviation of
    1.1), and the graph's by 0.9e-4. The two errors are independent, so the graph differs from
    PyTorch by more than 1e-4 there; with the gains of a new network and 224 pixels, it differs by
    2.9e-5 and 2.8e-5. The limit allows for chance in the two maxima.
    """
    classifier = make_classifier(FAMILY[member])
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    logits = OnnxRuntimeCpu(to_bytes(to_onnx(classifier, 32)), Encoding.FLOAT).run(images)
    with torch.inference_mode():
        pixels = classifier.normalize(torch.from_numpy(images))
        expected = classifier.network(pixels).numpy()
        exact = classifier.network.double()(pixels.double()).numpy()
    error = np.abs(expected - exact).max()
    assert error > 0
    assert np.abs(logits - exact).max() < 3 * error


def test_logits_of_onnxs_reference_evaluator_match_pytorch() -> None:
    classifier = make_classifier()
    graph = onnx.load_from_string(to_bytes(to_onnx(classifier, 32)))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    (logits,) = ReferenceEvaluator(graph).run(None, {"images": images})
    with torch.inference_mode():
        expected = classifier(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(
        np.asarray(logits), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


# Channels

BGR = Preprocessing(
    image_size=(32, 48), channels=Channels.BGR, value_range=255, mean=(103.0, 116.0, 123.0),
    std=(57.0, 58.0, 59.0),
)  # fmt: skip
GRAY = Preprocessing(image_size=(32, 48), channels=Channels.GRAY, mean=(0.5,), std=(0.25,))
FLOAT = ("fp32", "fp16")


@pytest.fixture(scope="module", params=[BGR, GRAY], ids=["bgr", "gray"])
def other(request: pytest.FixtureRequest) -> Exported:
    prep = request.param
    architecture = Architecture(classes=5, blocks=(1, 1, 1, 1), input_channels=len(prep.mean))
    return export_network(make_classifier(architecture, preprocessing=prep), prep.image_size)


@pytest.mark.parametrize("graph", [*FLOAT, Encoding.TENSORRT, Encoding.CPU, Encoding.DLA])
def test_every_graph_takes_rgb_pixels_and_converts_their_channels(
    other: Exported, graph: str
) -> None:
    expected = other.pytorch(other.images)
    encoding = Encoding.FLOAT if graph in FLOAT else Encoding(graph)
    model = {"fp32": other.model, "fp16": other.half()}.get(graph) or other.quantised(encoding)
    logits = OnnxRuntimeCpu(to_bytes(model), encoding).run(other.images)
    assert coverage(model.graph, encoding).int8_convs == (0 if graph in FLOAT else 12)
    # FP32 rounds at 1e-7, FP16 at 5e-4, INT8 at 4e-3 of each tensor's range; wrong channels change
    # the logits by half of their range.
    tolerance = {"fp32": 1e-5, "fp16": 3e-3}.get(graph, 0.1)
    assert np.abs(logits - expected).max() < tolerance * np.abs(expected).max()


def test_bgr_needs_no_operators() -> None:
    bgr, rgb = (
        [node.op_type for node in to_onnx(make_classifier(preprocessing=prep), 32).graph]
        for prep in (BGR, None)
    )
    assert bgr == rgb


def test_grey_in_onnx_runtime_is_exactly_that_of_pillow() -> None:
    architecture = Architecture(classes=3, blocks=(1, 1, 1, 1), input_channels=1)
    unscaled = Preprocessing(
        image_size=(64, 1024), channels=Channels.GRAY, value_range=255, mean=(0.0,), std=(1.0,)
    )
    model = to_onnx(make_classifier(architecture, preprocessing=unscaled), unscaled.image_size)
    session = onnxruntime.InferenceSession(with_outputs(model, ["normalize.add_2"]))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 1024, 3), dtype=np.uint8)
    pixels[0] = np.arange(256, dtype=np.uint8).repeat(256).reshape(64, 1024, 1)
    (grey,) = session.run(["normalize.add_2"], {"images": pixels})
    expected = [np.array(Image.fromarray(image).convert("L")) for image in pixels]
    np.testing.assert_array_equal(np.asarray(grey)[:, 0], np.stack(expected))


# The file


def test_versions_are_pinned(resnet34: Exported) -> None:
    proto = onnx.load_from_string(to_bytes(resnet34.model))
    assert proto.ir_version == IR_VERSION
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", OPSET)]
    assert proto.producer_name == "resdeploy"


def test_other_versions_are_rejected(resnet34: Exported) -> None:
    other = resnet34.model.clone()
    other.ir_version = IR_VERSION + 1
    with pytest.raises(ExportError, match="IR and operator set versions"):
        to_bytes(other)


def test_an_invalid_graph_is_rejected(resnet34: Exported) -> None:
    broken = resnet34.model.clone()
    broken.graph.remove(next(node for node in broken.graph if node.name == "conv1"))
    with pytest.raises(ExportError, match="not valid ONNX"):
        to_bytes(broken)


def test_input_and_output_have_the_documented_types_and_shapes(resnet34: Exported) -> None:
    graph = onnx.load_from_string(to_bytes(resnet34.model)).graph
    (images,), (logits,) = graph.input, graph.output
    assert images.name == "images"
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    dims = images.type.tensor_type.shape.dim
    assert dims[0].dim_param == "batch"
    assert [dim.dim_value for dim in dims[1:]] == [64, 64, 3]
    assert logits.name == "logits"
    assert logits.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert logits.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert logits.type.tensor_type.shape.dim[1].dim_value == 10


def test_nodes_and_weights_are_named_after_modules(resnet34: Exported) -> None:
    names = [node.name for node in resnet34.model.graph]
    assert len(names) == len(set(names))
    assert {"conv1", "layer1.0.conv1", "layer4.2.conv2", "layer2.0.downsample.0", "fc"} <= set(
        names
    )
    assert "layer3.5.add" in names
    initializers = set(resnet34.model.graph.initializers)
    assert {"conv1.weight", "conv1.bias", "layer1.0.conv2.weight", "fc.bias"} <= initializers


def test_batch_norm_is_folded(resnet34: Exported) -> None:
    kinds = [node.op_type for node in resnet34.model.graph]
    assert "BatchNormalization" not in kinds
    assert (kinds.count("Conv"), kinds.count("Add") - 1, kinds.count("Gemm")) == (36, 16, 1)


def test_the_file_has_no_metadata_of_the_exporting_machine(resnet34: Exported) -> None:
    data = to_bytes(resnet34.model)
    assert b".py" not in data
    assert b"torch" not in data


def test_the_same_network_gives_the_same_file() -> None:
    graphs = [to_bytes(to_onnx(make_classifier(TINY), 32)) for _ in range(2)]
    assert graphs[0] == graphs[1]


def test_more_outputs_do_not_change_the_original_graph(resnet34: Exported) -> None:
    before = to_bytes(resnet34.model)
    proto = onnx.load_from_string(with_outputs(resnet34.model, ["maxpool", "layer4.2.relu2"]))
    assert [output.name for output in proto.graph.output] == ["logits", "maxpool", "layer4.2.relu2"]
    assert to_bytes(resnet34.model) == before


def test_folding_keeps_the_outputs_and_the_original() -> None:
    classifier = make_classifier()
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        before = classifier(images)
        folded = fold_batch_norm(classifier)(images)
        after = classifier(images)
    assert torch.equal(before, after)
    # Folding multiplies each weight once: relative errors of a few 2^-24 per layer.
    torch.testing.assert_close(folded, before, rtol=0, atol=1e-5 * before.abs().max().item())


def test_the_exporter_prints_nothing_and_its_logger_is_restored(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    level = logging.getLogger("torch.onnx").level
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_onnx(make_classifier(), 32)
    assert capsys.readouterr().out == ""
    assert logging.getLogger("torch.onnx").level == level
