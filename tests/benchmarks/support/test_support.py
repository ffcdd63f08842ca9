"""The support matrix: its cells, its judge of ONNX Runtime's graphs, and its training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from benchmarks.results import SUPPORT_HEAD, EncodingResult, SupportRow, support_cells
from benchmarks.support.measure import onnxruntime_kernels
from benchmarks.support.networks import SUBJECTS, Subject
from benchmarks.support.training import TrainingImages, trained
from resdeploy.bundle.bundle import Bundle


def test_cells_have_both_graphs_or_the_reason_of_a_refusal() -> None:
    encodings = {
        name: EncodingResult(
            convs=5, int8_convs=convs, float_convs={}, agreement=agreement, sqnr_db=25, drop=drop
        )
        for name, convs, agreement, drop in (("cpu", 5, 97.25, 0.5), ("tensorrt", 4, 96.0, -0.25))
    }
    row = SupportRow(
        network="Net", source="module", weights="random", image_size=64, images=1000,
        fp32_top1=50, encodings=encodings, onnxruntime_int8_convs=5, fastest="openvino",
        speedup=(2.5, 2.25, 2.75), inexact={"Sigmoid": 3}, engines={"int8": "", "fp16": "no"},
    )  # fmt: skip
    refused = SupportRow(
        network="Other", source="ONNX file", weights="random", image_size=32, error="two inputs"
    )
    cells = support_cells([row, refused])
    assert cells[0] == [
        "Net", "module, 64 px", "50.0 %", "5 and 4 of 5", "97.2 and 96.0 %", "25.0 and 25.0 dB",
        "+0.5 and -0.2", "no: Sigmoid", "2.50x, openvino", "no: fp16",
    ]  # fmt: skip
    assert cells[1][:3] == ["Other", "ONNX file, 32 px", "refused: two inputs"]
    assert {len(line) for line in cells} == {len(SUPPORT_HEAD)}


def test_the_judge_finds_convolutions_in_float(tiny_bundle: Bundle) -> None:
    artifact = tiny_bundle.artifact("int8-cpu")
    graph = tiny_bundle.read(artifact.file)
    assert onnxruntime_kernels(graph)[:2] == (artifact.convs, ())
    model = onnx.load_from_string(graph)
    convolution = next(node for node in model.graph.node if node.op_type == "Conv")
    dequantize = next(node for node in model.graph.node if convolution.input[1] in node.output)
    integers = next(i for i in model.graph.initializer if i.name == dequantize.input[0])
    weight = onnx.numpy_helper.to_array(integers).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "in float"))
    convolution.input[1] = "in float"
    integer, in_float, _ = onnxruntime_kernels(model.SerializeToString())
    assert (integer, len(in_float)) == (artifact.convs - 1, 1)


def test_weights_are_trained_once(image_data: Path, tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(4, 3),
        )  # fmt: skip

    subject = Subject(title="Net", source="module", make=make, steps=2, batch=4)
    said: list[str] = []
    images = TrainingImages(image_data)
    first = trained("net", subject, tmp_path, images, said.append)
    again = trained("net", subject, tmp_path, TrainingImages(tmp_path / "none"), said.append)
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, again.state_dict()[name], rtol=0, atol=0)
    assert len(said) == 1
    assert not first.training
    norm = first[1]  # type: ignore[index]
    assert norm.running_var.min() > 0


@pytest.mark.parametrize("name", ["mobilenetv3", "densenet121"])
def test_own_definitions_classify_images(name: str) -> None:
    network = SUBJECTS[name].make().eval()
    with torch.inference_mode():
        assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 10)
    parameters = sum(value.numel() for value in network.parameters())
    # Those of torchvision's networks with ten classes.
    assert parameters == {"mobilenetv3": 1_528_106, "densenet121": 6_964_106}[name]
