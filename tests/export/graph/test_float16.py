"""Tests of the conversion to float16."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from resdeploy.bundle.manifest import Encoding
from resdeploy.errors import ExportError
from resdeploy.export.graph.float16 import to_float16
from resdeploy.export.graph.to_onnx import to_bytes, to_onnx
from resdeploy.runtime.backends.onnxruntime.cpu import OnnxRuntimeCpu
from resdeploy.statistics import sqnr_db
from tests.export.conftest import Exported
from tests.samples import make_classifier


def test_every_tensor_after_the_normalisation_is_float16(resnet34: Exported) -> None:
    graph = resnet34.half().graph
    nodes = list(graph)
    first = next(index for index, node in enumerate(nodes) if node.op_type == "Conv")
    for node in nodes[first:-1]:
        assert all(value.dtype == ir.DataType.FLOAT16 for value in node.outputs)
        assert all(value is None or value.dtype == ir.DataType.FLOAT16 for value in node.inputs)
    assert graph.outputs[0].dtype == ir.DataType.FLOAT


def test_pixels_are_normalised_in_fp32_and_rounded_once(resnet34: Exported) -> None:
    nodes = list(resnet34.half().graph)
    first = next(index for index, node in enumerate(nodes) if node.op_type == "Conv")
    casts = [node for node in nodes[:first] if node.op_type == "Cast"]
    assert len(casts) == 2  # from uint8 to float32, and from float32 to float16
    assert all(
        value.dtype == ir.DataType.FLOAT for node in nodes[1 : first - 1] for value in node.outputs
    )


def test_types_pass_onnxs_checker(resnet34: Exported) -> None:
    # to_bytes runs the checker with full_check, which infers every type and compares it.
    onnx.load_from_string(to_bytes(resnet34.half()))


def test_the_input_and_output_names_are_kept(resnet34: Exported) -> None:
    graph = resnet34.half().graph
    assert (graph.inputs[0].name, graph.outputs[0].name) == ("images", "logits")


def test_logits_are_as_accurate_as_torchs_float16(resnet34: Exported) -> None:
    images = resnet34.images[:16]
    expected = resnet34.pytorch(images)
    ours = OnnxRuntimeCpu(to_bytes(resnet34.half()), Encoding.FLOAT).run(images)
    network = copy.deepcopy(resnet34.classifier.network).half()
    with torch.inference_mode():
        pixels = resnet34.classifier.normalize(torch.from_numpy(images))
        torch_half = network(pixels.half()).float().numpy()
    ours_db, torch_db = (np.median(sqnr_db(expected, x)) for x in (ours, torch_half))
    # With ten fraction bits, 34 layers give about 55 dB; engines round at different places.
    assert ours_db > torch_db - 6
    assert ours_db > 40


def test_the_original_graph_is_not_changed(resnet34: Exported) -> None:
    before = to_bytes(resnet34.model)
    resnet34.half()
    assert to_bytes(resnet34.model) == before


def test_too_large_weights_are_named() -> None:
    classifier = make_classifier()
    classifier.network.fc.weight.data[0, 0] = 1e6
    model = to_onnx(classifier, 32)
    with pytest.raises(ExportError, match=r"fc\.weight contains 1e\+06, but the largest float16"):
        to_float16(model)
