"""Tests that TensorRT-RTX parses and builds every graph, ahead of time and without a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from resdeploy.bundle.manifest import Encoding
from resdeploy.export.graph.placement import float_shortcuts
from resdeploy.export.graph.to_onnx import to_bytes
from resdeploy.export.quantization.recipe import QuantizationRecipe
from resdeploy.train.model.architecture import Architecture, Shortcut
from tests.export.conftest import SIZE, Exported, export_network
from tests.samples import make_classifier

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no wheel for this machine")


class Log(trt.ILogger):  # type: ignore[misc,name-defined]
    """Logger that keeps the messages for the output of a failing test."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def log(self, severity: object, message: str) -> None:
        self.lines.append(message)


def parse(graph: bytes, log: Log) -> tuple[Any, Any, list[str]]:
    builder = trt.Builder(log)
    network = builder.create_network(0)  # RTX: always explicit batch, always strongly typed
    parser = trt.OnnxParser(network, log)
    parser.parse(graph)
    errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
    return builder, network, errors


def build(graph: bytes) -> int:
    """Build an engine and return its size in bytes."""
    log = Log()
    builder, network, errors = parse(graph, log)
    assert errors == []
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("images", (1, SIZE, SIZE, 3), (8, SIZE, SIZE, 3), (32, SIZE, SIZE, 3))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, log.lines[-5:]
    return int(engine.nbytes)


def graph_of(exported: Exported, name: str) -> bytes:
    if name == "fp32":
        return to_bytes(exported.model)
    if name == "fp16":
        return to_bytes(exported.half())
    if name == "int8":
        ranges, in_float = exported.ranges, float_shortcuts(exported.model.graph)
        recipe = QuantizationRecipe(
            encoding=Encoding.TENSORRT, calibrator="max", ranges=ranges, in_float=in_float
        )
        return to_bytes(recipe.apply(exported.model))
    return to_bytes(exported.quantised(Encoding.DLA if "dla" in name else Encoding.TENSORRT))


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8", "int8-shortcuts", "int8-dla"])
def test_resnet34_builds(resnet34: Exported, name: str) -> None:
    assert build(graph_of(resnet34, name)) > 1 << 20


@pytest.mark.parametrize("shortcut", [Shortcut.A, Shortcut.C, Shortcut.PLAIN])
@pytest.mark.parametrize("name", ["int8", "int8-shortcuts", "int8-dla"])
def test_the_papers_variants_build_in_int8(shortcut: Shortcut, name: str) -> None:
    architecture = Architecture(classes=3, blocks=(1, 1, 1, 1), shortcut=shortcut)
    exported = export_network(make_classifier(architecture))
    assert build(graph_of(exported, name)) > 1 << 20


@pytest.mark.parametrize("name", ["fp16", "int8", "int8-shortcuts", "int8-dla"])
def test_the_family_builds(member: Exported, name: str) -> None:
    assert build(graph_of(member, name)) > 1 << 16


def test_integer_biases_are_rejected(resnet34: Exported) -> None:
    """Check the reason for float biases in int8.onnx: the parser rejects int32 biases."""
    proto = onnx.load_from_string(graph_of(resnet34, "int8"))
    conv = next(node for node in proto.graph.node if node.name == "conv1")
    scales = next(i for i in proto.graph.initializer if i.name == "conv1.weight.scale")
    proto.graph.initializer.extend(
        [
            numpy_helper.from_array(np.ones(64, np.int32), "bias.quantized"),
            numpy_helper.from_array(np.zeros(64, np.int32), "bias.zero_point"),
        ]
    )
    dequantize = onnx.helper.make_node(
        "DequantizeLinear",
        ["bias.quantized", scales.name, "bias.zero_point"],
        ["bias.float"],
        axis=0,
    )
    proto.graph.node.insert(list(proto.graph.node).index(conv), dequantize)
    conv.input[2] = "bias.float"
    onnx.checker.check_model(proto, full_check=True)  # the graph is valid ONNX
    *_, errors = parse(proto.SerializeToString(), Log())
    assert errors != []
