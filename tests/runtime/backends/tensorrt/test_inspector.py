"""Layers of an engine in the formats of TensorRT 10, TensorRT 11 and TensorRT-RTX."""

from __future__ import annotations

from typing import Any

import pytest

from resdeploy.runtime.backends.tensorrt.inspector import (
    EngineCoverage,
    EngineLayer,
    count_convolutions,
    parse_builder_log,
    parse_inspector_json,
)


def layer_of_10(kind: str, *types: str) -> dict[str, Any]:
    inputs = [{"Name": "x", "Location": "Device", "Format/Datatype": text} for text in types]
    return {"Name": f"a {kind}", "LayerType": kind, "Inputs": inputs, "Outputs": []}


def layer_of_11(kind: str, *types: str) -> dict[str, Any]:
    inputs = [
        {"Name": "x", "DataType": text, "Format": "Channel major format where channel % 32 == 0"}
        for text in types
    ]
    return {"Name": f"a {kind}", "LayerType": kind, "Inputs": inputs, "Outputs": []}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Int8", "int8"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Channel major INT8 format where channel % 16 == 0", "int8"),
        ("UInt8", "uint8"),
        ("Half", "fp16"),
        ("Row major linear FP16 format", "fp16"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Float", "fp32"),
        ("Row major linear FP32 format (kLINEAR)", "fp32"),
        ("FP8", "unknown"),
        ("", "unknown"),
    ],
)
def test_recognises_types_in_every_format(text: str, expected: str) -> None:
    for make in (layer_of_10, layer_of_11):
        (layer,) = parse_inspector_json({"Layers": [make("CaskConvolution", text)]})
        assert layer.input_types == (expected,)


@pytest.mark.parametrize("make", [layer_of_10, layer_of_11])
def test_counts_convolutions(make: Any) -> None:
    document = {
        "Layers": [
            make("Reformat", "UInt8"),
            make("CaskConvolution", "Int8", "Half"),
            make("CaskConvolution", "Half", "Int8"),  # a float convolution with an INT8 addition
            make("CaskPooling", "Int8"),
            make("CaskGemmConvolution", "Int8"),
        ],
        "Bindings": ["images", "logits"],
    }
    assert count_convolutions(parse_inspector_json(document)) == EngineCoverage(
        convs=3, int8_convs=2
    )


@pytest.mark.parametrize(
    "document", [{}, {"Layers": []}, {"Layers": ["conv1 + relu", "fc"]}], ids=str
)
def test_layers_without_details_are_skipped(document: dict[str, Any]) -> None:
    assert count_convolutions(parse_inspector_json(document)) is None


@pytest.mark.parametrize(
    "layer", [{}, {"Inputs": [3]}, {"LayerType": None, "Inputs": [{"DataType": None}]}], ids=str
)
def test_layers_without_types_are_unknown(layer: dict[str, Any]) -> None:
    (found,) = parse_inspector_json({"Layers": [layer]})
    assert not found.runs_in_int8
    assert not found.is_convolution


def test_parses_the_log_of_rtx() -> None:
    text = (
        "Name: conv1_U120_myl0_2, LayerType: correlation, Inputs: [ { Name: x.1_19, "
        "Dimensions: [-1,4,32,32], Strides: [4096,1,128,4], StrideOrder: [3,0,2,1], "
        "Datatype: Int8, Format: (NHWC) Channel major format }], Constants: [ { Name: w, "
        "Datatype: Float }], Outputs: []\n"
        "Name: __mye3627_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: []\n"
        "something else\n"
    )
    assert parse_builder_log(text) == [
        EngineLayer(name="conv1_U120_myl0_2", kind="correlation", input_types=("int8",)),
        EngineLayer(name="__mye3627_0_myl0_0", kind="shape_call", input_types=()),
    ]
