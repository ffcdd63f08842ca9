"""Tests of layers kept in float: the edges that are removed, and those that remain."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from resdeploy.bundle.manifest import Encoding
from resdeploy.export.graph.float_layers import conv_share, keep_in_float, layers_of, macs
from resdeploy.export.graph.placement import QuantizedEdge, place
from resdeploy.export.graph.to_onnx import to_onnx
from resdeploy.train.model.architecture import Architecture, Shortcut
from tests.samples import SIZE, make_classifier

BOTH = (Encoding.TENSORRT, Encoding.CPU)
Read = tuple[str, tuple[str, int]]


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return to_onnx(make_classifier(Architecture(classes=3, blocks=(2, 2, 1, 1))), SIZE)


def reads(edges: tuple[QuantizedEdge, ...]) -> set[Read]:
    return {(edge.tensor, reader) for edge in edges for reader in edge.readers}


def removed(model: ir.Model, encoding: Encoding, *nodes: str) -> set[Read]:
    edges = place(model.graph, encoding)
    return reads(edges) - reads(keep_in_float(model, edges, nodes, encoding))


def nodes_of(model: ir.Model, encoding: Encoding, name: str) -> list[str]:
    return sorted(next(x.nodes for x in layers_of(model, encoding) if x.name == name))


def test_resnet34_has_36_convolutions_16_shortcuts_and_a_classifier() -> None:
    full = to_onnx(make_classifier(Architecture(classes=10)), 224)
    for encoding, shortcuts in ((Encoding.TENSORRT, 16), (Encoding.CPU, 4)):  # one per stage
        kinds = [layer.kind for layer in layers_of(full, encoding)]
        assert kinds.count("convolution") == 36
        assert kinds.count("shortcut") == shortcuts
        assert kinds.count("classifier") == 1
    # He et al. 2015, table 1: 3.6e9 multiply-accumulates, including the classifier.
    convs = [macs(node) for node in full.graph if node.op_type == "Conv"]
    assert sum(convs) == 3_663_249_408
    assert macs(next(node for node in full.graph if node.name == "conv1")) == 118_013_952
    assert conv_share(full, {"conv1", "fc"}) == (1, 118_013_952 / sum(convs))


@pytest.mark.parametrize("encoding", BOTH)
def test_no_layer_in_float_changes_nothing(model: ir.Model, encoding: Encoding) -> None:
    edges = place(model.graph, encoding)
    assert keep_in_float(model, edges, (), encoding) == edges


@pytest.mark.parametrize("encoding", BOTH)
def test_all_layers_in_float_leave_no_edges(model: ir.Model, encoding: Encoding) -> None:
    edges = place(model.graph, encoding)
    all_nodes = [node for layer in layers_of(model, encoding) for node in layer.nodes]
    assert keep_in_float(model, edges, all_nodes, encoding) == ()


def test_a_tensorrt_convolution_in_float_leaves_its_neighbours_in_int8(model: ir.Model) -> None:
    assert removed(model, Encoding.TENSORRT, "layer1.0.conv2") == {
        ("layer1.0.relu1", ("layer1.0.conv2", 0))
    }
    # The shortcut still reads the tensor in INT8.
    assert removed(model, Encoding.TENSORRT, "layer1.1.conv1") == {
        ("layer1.0.relu2", ("layer1.1.conv1", 0))
    }


def test_a_cpu_convolution_in_float_leaves_its_source_in_integers(model: ir.Model) -> None:
    assert removed(model, Encoding.CPU, "layer1.0.conv2") == set()  # only its weight is float
    assert removed(model, Encoding.CPU, "conv1") == {("normalize.add", ("conv1", 0))}
    # Between two successive convolutions in float, nothing is quantised.
    assert removed(model, Encoding.CPU, "layer1.0.conv1", "layer1.0.conv2") == {
        ("layer1.0.relu1", ("layer1.0.conv2", 0))
    }


def test_a_pooling_before_a_shortcut_in_float_is_float(model: ir.Model) -> None:
    # After an INT8 pooling, a float shortcut would gain no accuracy.
    assert removed(model, Encoding.TENSORRT, "layer1.0.add") == {
        ("maxpool", ("layer1.0.add", 1)),
        ("relu", ("maxpool", 0)),
    }


def test_cpu_shortcuts_of_a_stage_are_one_layer(model: ir.Model) -> None:
    nodes = nodes_of(model, Encoding.CPU, "layer1.0.add")
    assert nodes == ["layer1.0.add", "layer1.1.add"]
    # The output of each block's last convolution stays quantised.
    assert removed(model, Encoding.CPU, *nodes) == {("layer1.0.relu2", ("layer1.1.add", 1))}


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        (Encoding.TENSORRT, {("avgpool.flatten", ("fc", 0))}),
        (
            Encoding.CPU,
            {("avgpool", ("avgpool.flatten", 0)), ("avgpool.flatten", ("fc", 0))},
        ),
    ],
)
def test_the_classifier_includes_the_pooling(
    model: ir.Model, encoding: Encoding, expected: set[Read]
) -> None:
    assert removed(model, encoding, *nodes_of(model, encoding, "fc")) == expected


@pytest.mark.parametrize("shortcut", list(Shortcut))
@pytest.mark.parametrize("encoding", BOTH)
def test_all_variants_have_layers(shortcut: Shortcut, encoding: Encoding) -> None:
    other = to_onnx(
        make_classifier(Architecture(classes=3, blocks=(1, 1, 1, 1), shortcut=shortcut)), SIZE
    )
    edges = place(other.graph, encoding)
    for layer in layers_of(other, encoding):
        assert layer.cost > 0
        assert reads(keep_in_float(other, edges, layer.nodes, encoding)) <= reads(edges)
