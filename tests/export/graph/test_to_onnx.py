"""The FP32 graph gives PyTorch's answers, for any batch, and reads well."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from resdeploy.bundle.manifest import Encoding
from resdeploy.errors import ExportError
from resdeploy.export.graph.to_onnx import (
    IR_VERSION,
    OPSET,
    fold_batch_norm,
    to_bytes,
    to_onnx,
    with_outputs,
)
from resdeploy.runtime.backends.onnxruntime.cpu import OnnxRuntimeCpu
from resdeploy.runtime.verification.golden_check import load_batches
from resdeploy.train.model.architecture import Architecture, Shortcut
from tests.export.conftest import Exported
from tests.samples import TINY, make_classifier

# Batch norm folded in FP32 and sums in another order, through 34 layers: measured 1e-5 and less
# on logits within +-10. The requirement is 1e-4.
PARITY = 1e-4
BATCHES = (1, 2, 7, 64)


@pytest.fixture(scope="module")
def backend(resnet34: Exported) -> OnnxRuntimeCpu:
    return OnnxRuntimeCpu(to_bytes(resnet34.model), Encoding.FLOAT)


def test_fp32_gives_pytorchs_logits(resnet34: Exported, backend: OnnxRuntimeCpu) -> None:
    expected = resnet34.pytorch(resnet34.images)
    assert np.abs(expected).max() > 1  # else the next line would mean little
    np.testing.assert_allclose(backend.run(resnet34.images), expected, rtol=0, atol=PARITY)


@pytest.mark.parametrize("value", [0, 255])
def test_flat_images_agree_too(resnet34: Exported, backend: OnnxRuntimeCpu, value: int) -> None:
    flat = np.full_like(resnet34.images[:2], value)
    np.testing.assert_allclose(backend.run(flat), resnet34.pytorch(flat), rtol=0, atol=PARITY)


def test_batches_agree_with_each_other(resnet34: Exported, backend: OnnxRuntimeCpu) -> None:
    reference = load_batches(backend, resnet34.images, batch=1)
    for batch in BATCHES[1:]:
        logits = load_batches(backend, resnet34.images, batch=batch)
        np.testing.assert_allclose(logits, reference, rtol=0, atol=PARITY)


@pytest.mark.parametrize("batch", BATCHES)
def test_identical_rows_give_identical_logits(
    resnet34: Exported, backend: OnnxRuntimeCpu, batch: int
) -> None:
    logits = backend.run(np.repeat(resnet34.images[:1], batch, axis=0))
    np.testing.assert_array_equal(logits, np.repeat(logits[:1], batch, axis=0))


@pytest.mark.parametrize("shortcut", [Shortcut.A, Shortcut.C, Shortcut.PLAIN])
def test_the_papers_variants_agree(shortcut: Shortcut, resnet34: Exported) -> None:
    classifier = make_classifier(Architecture(classes=4, blocks=(2, 1, 1, 1), shortcut=shortcut))
    graph = to_bytes(to_onnx(classifier, 64))
    images = resnet34.images[:7]
    with torch.inference_mode():
        expected = classifier(torch.from_numpy(images)).numpy()
    logits = OnnxRuntimeCpu(graph, Encoding.FLOAT).run(images)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_onnxs_own_evaluator_agrees() -> None:
    classifier = make_classifier()
    graph = onnx.load_from_string(to_bytes(to_onnx(classifier, 32)))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    (logits,) = ReferenceEvaluator(graph).run(None, {"images": images})
    with torch.inference_mode():
        expected = classifier(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(
        np.asarray(logits), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


# The file


def test_versions_are_pinned(resnet34: Exported) -> None:
    proto = onnx.load_from_string(to_bytes(resnet34.model))
    assert proto.ir_version == IR_VERSION
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", OPSET)]
    assert proto.producer_name == "resdeploy"


def test_other_versions_are_refused(resnet34: Exported) -> None:
    other = resnet34.model.clone()
    other.ir_version = IR_VERSION + 1
    with pytest.raises(ExportError, match="IR and operator versions"):
        to_bytes(other)


def test_a_broken_graph_is_refused(resnet34: Exported) -> None:
    broken = resnet34.model.clone()
    broken.graph.remove(next(node for node in broken.graph if node.name == "conv1"))
    with pytest.raises(ExportError, match="not valid ONNX"):
        to_bytes(broken)


def test_input_and_output_are_those_of_the_contract(resnet34: Exported) -> None:
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


def test_batch_norm_is_folded_away(resnet34: Exported) -> None:
    kinds = [node.op_type for node in resnet34.model.graph]
    assert "BatchNormalization" not in kinds
    assert (kinds.count("Conv"), kinds.count("Add") - 1, kinds.count("Gemm")) == (36, 16, 1)


def test_nothing_of_the_exporting_machine_is_in_the_file(resnet34: Exported) -> None:
    data = to_bytes(resnet34.model)
    assert b".py" not in data
    assert b"torch" not in data


def test_the_same_network_gives_the_same_file() -> None:
    graphs = [to_bytes(to_onnx(make_classifier(TINY), 32)) for _ in range(2)]
    assert graphs[0] == graphs[1]


def test_more_outputs_leave_the_graph_alone(resnet34: Exported) -> None:
    before = to_bytes(resnet34.model)
    proto = onnx.load_from_string(with_outputs(resnet34.model, ["maxpool", "layer4.2.relu2"]))
    assert [output.name for output in proto.graph.output] == ["logits", "maxpool", "layer4.2.relu2"]
    assert to_bytes(resnet34.model) == before


def test_folding_keeps_the_function_and_the_original() -> None:
    classifier = make_classifier()
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        before = classifier(images)
        folded = fold_batch_norm(classifier)(images)
        after = classifier(images)
    assert torch.equal(before, after)
    # One product folded into each weight: relative errors of a few 2^-24 per layer.
    torch.testing.assert_close(folded, before, rtol=0, atol=1e-5 * before.abs().max().item())


def test_the_exporter_is_quiet_and_its_logger_restored(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    level = logging.getLogger("torch.onnx").level
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_onnx(make_classifier(), 32)
    assert capsys.readouterr().out == ""
    assert logging.getLogger("torch.onnx").level == level
