"""Tests that the work of a graph matches counts by hand."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.bundle.operation_counts import Work
from resdeploy.export.graph.count_operations import work_of
from resdeploy.export.graph.to_onnx import to_onnx
from resdeploy.json_documents import parse
from resdeploy.train.model.architecture import Architecture
from tests.samples import make_classifier


def value(name: str, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def small_graph() -> ir.Model:
    """Return a 3x3 convolution of stride 2 from 3x8x8 to 4x4x4, a ReLU, a pooling, and 5 logits."""
    images = value("images", "batch", 3, 8, 8)
    kernel, matrix = value("kernel", 4, 3, 3, 3), value("matrix", 5, 4)
    nodes = [
        ir.node("Conv", [images, kernel], outputs=[value("convolved", "batch", 4, 4, 4)]),
    ]
    for kind, shape in (("Relu", (4, 4, 4)), ("GlobalAveragePool", (4, 1, 1)), ("Flatten", (4,))):
        outputs = [value(kind, "batch", *shape)]
        nodes.append(ir.node(kind, [nodes[-1].outputs[0]], outputs=outputs))
    logits = value("logits", "batch", 5)
    nodes.append(ir.node("Gemm", [nodes[-1].outputs[0], matrix], outputs=[logits]))
    graph = ir.Graph([images], [logits], nodes=nodes, initializers=[], opset_imports={"": 20})
    return ir.Model(graph, ir_version=9)


def test_the_work_of_a_small_graph_matches_a_count_by_hand() -> None:
    work = work_of(small_graph())
    assert work.totals.macs == 4 * 4 * 4 * 27 + 5 * 4
    assert work.totals.weights == 4 * 27 + 5 * 4
    assert work.totals.activations == (3 * 64 + 4 * 16) + (4 + 5)


def test_resnet34_at_224_takes_7_gflop_per_image() -> None:
    work = work_of(to_onnx(make_classifier(Architecture(classes=1000)), 224))
    assert 3.66e9 <= work.totals.macs <= 3.67e9  # 3.6e9 in He et al. 2015, table 1, rounded down
    assert work.totals.operations(8) == 16 * work.totals.macs
    # 21.8 million parameters without those of the batch norms and the biases of the classifier.
    assert 21.7e6 <= work.totals.weights <= 21.8e6


def test_the_manifest_has_the_work_of_the_fp32_graph(tiny_bundle: Bundle) -> None:
    work = work_of(to_onnx(make_classifier(), 32))
    assert open_bundle(tiny_bundle.path).manifest.work == work


def test_layers_are_named_as_in_the_graph() -> None:
    names = [layer.name for layer in work_of(to_onnx(make_classifier(), 32)).layers]
    assert names[0] == "conv1"
    assert names[-1] == "fc"
    assert parse(Work, work_of(small_graph()).to_json()) == work_of(small_graph())


def test_a_dynamic_shape_is_an_error() -> None:
    model = small_graph()
    model.graph.inputs[0].shape = ir.Shape(("batch", 3, "height", 8))
    with pytest.raises(AssertionError, match="dynamic shape"):
        work_of(model)
