"""Work counted by hand, and the bound that follows from it."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from benchmarks.roofline import Ceilings, Roofline, Work, roofline, work_of, work_of_bundle

from resdeploy.bundle import Bundle
from resdeploy.export.to_onnx import to_onnx
from resdeploy.train.architecture import Architecture
from tests.samples import make_classifier

WORK = Work(macs=1000, weights=100, activations=50)
CEILINGS = Ceilings(operations_per_second={"tf32": 1e6, "fp16": 4e6}, bytes_per_second=1e5)


def value(name: str, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def small_graph() -> ir.Model:
    """(N, 3, 8, 8) -> convolution 3x3, stride 2 -> (N, 4, 4, 4) -> ReLU, pool -> (N, 4) -> 5."""
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


def test_a_small_graph_is_counted_as_by_hand() -> None:
    work = work_of(small_graph())
    assert work.macs == 4 * 4 * 4 * 27 + 5 * 4
    assert work.weights == 4 * 27 + 5 * 4
    assert work.activations == (3 * 64 + 4 * 16) + (4 + 5)


def test_resnet34_at_224_does_seven_gflop_an_image() -> None:
    work = work_of(to_onnx(make_classifier(Architecture(classes=1000)), 224))
    assert 3.66e9 <= work.macs <= 3.67e9  # 3.6e9 in He et al. 2015, table 1, rounded down
    assert work.operations(8) == 16 * work.macs
    # 21.8 million parameters, less the batch norms' and the classifier's biases.
    assert 21.7e6 <= work.weights <= 21.8e6


def test_a_bundle_is_counted_by_its_fp32_graph(tiny_bundle: Bundle) -> None:
    assert work_of_bundle(tiny_bundle) == work_of(to_onnx(make_classifier(), 32))


def test_an_open_shape_is_not_counted_as_one() -> None:
    model = small_graph()
    model.graph.inputs[0].shape = ir.Shape(("batch", 3, "height", 8))
    with pytest.raises(AssertionError, match="open shape"):
        work_of(model)


@pytest.mark.parametrize(
    ("precision", "size"), [("fp32", 4), ("fp16", 2), ("bf16", 2), ("int8", 1)]
)
def test_weights_move_once_a_batch_and_activations_once_an_image(precision: str, size: int) -> None:
    assert WORK.bytes(1, precision) == size * 150
    assert WORK.bytes(8, precision) == size * 500


def test_the_slower_of_computing_and_moving_decides() -> None:
    # At batch 1, 2000 operations take 2 ms and 600 bytes take 6 ms.
    assert roofline(WORK, CEILINGS, "fp32", 1) == Roofline(ms=6.0, bound="memory")
    # At batch 256, 512000 operations take 512 ms and 51600 bytes take 516 ms.
    assert roofline(WORK, CEILINGS, "fp32", 256) == Roofline(ms=516.0, bound="memory")
    faster = Ceilings(operations_per_second={"tf32": 1e6}, bytes_per_second=1e6)
    assert roofline(WORK, faster, "fp32", 1) == Roofline(ms=2.0, bound="compute")


def test_without_a_measured_ceiling_there_is_no_bound() -> None:
    assert roofline(WORK, CEILINGS, "int8", 1) is None
    assert roofline(WORK, None, "fp32", 1) is None
    assert roofline(None, CEILINGS, "fp32", 1) is None
    no_copy = Ceilings(operations_per_second={"tf32": 1e6}, bytes_per_second=None)
    assert roofline(WORK, no_copy, "fp32", 1) is None
