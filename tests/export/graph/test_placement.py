"""Tests of the Q/DQ placement on ResNet-34 and on the variants of the paper."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
import pytest

from resdeploy.bundle.manifest import Encoding
from resdeploy.export.graph.float_layers import keep_in_float
from resdeploy.export.graph.placement import QuantizedEdge, float_shortcuts, is_residual_add, place
from resdeploy.export.graph.to_onnx import to_onnx
from resdeploy.train.model.architecture import Architecture, Shortcut
from tests.export.conftest import Exported
from tests.samples import make_classifier


def readers_by_kind(graph: ir.Graph, edges: tuple[QuantizedEdge, ...]) -> Counter[str]:
    """Return the number of quantised inputs by operator."""
    nodes = {node.name: node for node in graph}
    return Counter(nodes[name].op_type for edge in edges for name, _ in edge.readers)


@pytest.fixture(scope="module")
def tensorrt(resnet34: Exported) -> tuple[QuantizedEdge, ...]:
    return place(resnet34.model.graph, Encoding.TENSORRT)


@pytest.fixture(scope="module")
def cpu(resnet34: Exported) -> tuple[QuantizedEdge, ...]:
    return place(resnet34.model.graph, Encoding.CPU)


def test_float_graphs_have_no_quantised_edges(resnet34: Exported) -> None:
    assert place(resnet34.model.graph, Encoding.FLOAT) == ()


def test_tensorrt_quantises_36_convolutions_and_16_shortcuts(
    resnet34: Exported, tensorrt: tuple[QuantizedEdge, ...]
) -> None:
    assert readers_by_kind(resnet34.model.graph, tensorrt) == {
        "Conv": 36, "Add": 16, "Gemm": 1, "MaxPool": 1,
    }  # fmt: skip


def test_identity_shortcuts_share_the_scale_of_the_first_convolution(
    tensorrt: tuple[QuantizedEdge, ...],
) -> None:
    shared = [
        edge
        for edge in tensorrt
        if {"conv1", "add"} <= {name.rsplit(".", 1)[-1] for name, _ in edge.readers}
    ]
    own = [
        edge for edge in tensorrt if [name.endswith(".add") for name, _ in edge.readers] == [True]
    ]
    assert (len(shared), len(own)) == (13, 3)
    assert {edge.tensor for edge in own} == {f"layer{stage}.0.downsample.0" for stage in (2, 3, 4)}


def test_tensorrt_adds_the_output_of_a_convolution_in_float(
    resnet34: Exported, tensorrt: tuple[QuantizedEdge, ...]
) -> None:
    quantised = {(name, index) for edge in tensorrt for name, index in edge.readers}
    adds = [node for node in resnet34.model.graph if is_residual_add(node)]
    assert len(adds) == 16
    for node in adds:
        (float_side,) = [i for i in (0, 1) if (node.name, i) not in quantised]
        producer = node.inputs[float_side].producer()  # type: ignore[union-attr]
        assert producer is not None
        assert str(producer.name).endswith(".conv2")


def test_pooling_keeps_the_scale_of_its_input(tensorrt: tuple[QuantizedEdge, ...]) -> None:
    by_tensor = {edge.tensor: edge for edge in tensorrt}
    assert by_tensor["relu"].range_of == by_tensor["maxpool"].range_of == "relu"
    others = [edge for edge in tensorrt if edge.tensor != "maxpool"]
    assert all(edge.range_of == edge.tensor for edge in others)


def test_cpu_quantises_every_edge_after_the_normalisation(
    resnet34: Exported, cpu: tuple[QuantizedEdge, ...]
) -> None:
    quantised = {(name, index) for edge in cpu for name, index in edge.readers}
    graph = list(resnet34.model.graph)
    first = next(index for index, node in enumerate(graph) if node.op_type == "Conv")
    for node in graph[first:]:
        for index, value in enumerate(node.inputs):
            if value is None or value.is_initializer():
                continue
            fused_relu = node.op_type == "Relu" and len(value.uses()) == 1
            assert ((node.name, index) in quantised) is not fused_relu


def test_the_input_and_the_normalisation_are_not_quantised(
    tensorrt: tuple[QuantizedEdge, ...], cpu: tuple[QuantizedEdge, ...]
) -> None:
    for edges in (tensorrt, cpu):
        assert all(not name.startswith("normalize") for edge in edges for name, _ in edge.readers)


@pytest.mark.parametrize("encoding", [Encoding.TENSORRT, Encoding.CPU, Encoding.DLA])
@pytest.mark.parametrize("shortcut", [Shortcut.A, Shortcut.C, Shortcut.PLAIN])
def test_every_convolution_of_the_variants_is_quantised(
    shortcut: Shortcut, encoding: Encoding
) -> None:
    architecture = Architecture(classes=3, blocks=(1, 1, 1, 1), shortcut=shortcut)
    graph = to_onnx(make_classifier(architecture), 32).graph
    kinds = Counter(node.op_type for node in graph)
    found = readers_by_kind(graph, place(graph, encoding))
    assert found["Conv"] == kinds["Conv"] == 9 + {"A": 0, "C": 4, "plain": 0}[shortcut.value]
    assert found["Gemm"] == 1
    adds = sum(map(is_residual_add, graph))
    assert adds == (0 if shortcut is Shortcut.PLAIN else 4)
    assert found["Add"] == adds * (1 if encoding is Encoding.TENSORRT else 2)


def test_dla_has_the_placement_of_cpus(resnet34: Exported, cpu: tuple[QuantizedEdge, ...]) -> None:
    assert place(resnet34.model.graph, Encoding.DLA) == cpu


@pytest.mark.parametrize("shortcut", list(Shortcut))
def test_shortcuts_and_the_pooling_before_them_stay_float(shortcut: Shortcut) -> None:
    architecture = Architecture(classes=3, blocks=(2, 1, 1, 1), shortcut=shortcut)
    model = to_onnx(make_classifier(architecture), 64)
    additions = {"layer1.0.add", "layer1.1.add", "layer2.0.add", "layer3.0.add", "layer4.0.add"}
    in_float = float_shortcuts(model.graph)
    assert in_float == (set() if shortcut is Shortcut.PLAIN else additions)
    edges = keep_in_float(model, place(model.graph, Encoding.TENSORRT), in_float, Encoding.TENSORRT)
    found = readers_by_kind(model.graph, edges)
    convolutions = sum(node.op_type == "Conv" for node in model.graph)
    # A pooling whose readers are all convolutions stays in INT8.
    pooling = {"MaxPool": 1} if shortcut in (Shortcut.C, Shortcut.PLAIN) else {}
    assert found == {"Conv": convolutions, "Gemm": 1, **pooling}
