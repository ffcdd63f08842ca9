"""Tests of Q/DQ graphs: types for each engine, weights, biases, and logits."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from resdeploy.bundle.manifest import Encoding
from resdeploy.calibration.ranges import Range
from resdeploy.calibration.weight_rounding import LARGEST_PAIR
from resdeploy.export.graph.coverage import coverage
from resdeploy.export.graph.placement import place
from resdeploy.export.graph.qdq import insert_qdq
from resdeploy.export.graph.saturation import added_pairs
from resdeploy.export.graph.space_to_depth import KernelAxis, space_to_depth_kernel
from resdeploy.export.graph.to_onnx import to_bytes, to_onnx
from resdeploy.runtime.backends.onnxruntime.cpu import OnnxRuntimeCpu
from resdeploy.statistics import sqnr_db
from tests.export.conftest import Exported
from tests.samples import make_classifier

ALL = (Encoding.TENSORRT, Encoding.CPU, Encoding.DLA)


@pytest.fixture(scope="module", params=ALL)
def quantised(resnet34: Exported, request: pytest.FixtureRequest) -> tuple[Encoding, ir.Model]:
    return request.param, resnet34.quantised(request.param)


def array(value: ir.Value | None) -> np.ndarray:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def test_all_36_convolutions_are_quantised(
    quantised: tuple[Encoding, ir.Model], resnet34: Exported
) -> None:
    assert coverage(quantised[1].graph, quantised[0]).int8_convs == 36
    assert coverage(resnet34.model.graph, quantised[0]).int8_convs == 0


def test_the_graph_is_valid_and_its_names_are_unique(quantised: tuple[Encoding, ir.Model]) -> None:
    proto = onnx.load_from_string(to_bytes(quantised[1]))
    names = [node.name for node in proto.graph.node]
    assert len(names) == len(set(names))


def test_types_of_activations_weights_and_biases(quantised: tuple[Encoding, ir.Model]) -> None:
    encoding, model = quantised
    on_cpu = encoding is Encoding.CPU
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            assert array(node.inputs[2]).dtype == (np.uint8 if on_cpu else np.int8)
            assert array(node.inputs[1]).dtype == (np.float32 if on_cpu else np.float16)
            assert array(node.inputs[1]).shape == ()
            if not on_cpu:
                assert array(node.inputs[2]) == 0
        if node.op_type in ("Conv", "Gemm"):
            weight = node.inputs[1].producer()  # type: ignore[union-attr]
            assert weight is not None
            assert array(weight.inputs[0]).dtype == np.int8
            assert not array(weight.inputs[2]).any()
            assert weight.attributes["axis"].as_int() == 0
            bias = node.inputs[2]
            assert bias is not None
            if on_cpu:
                assert array(bias.producer().inputs[0]).dtype == np.int32  # type: ignore[union-attr]
            else:
                assert array(bias).dtype == np.float16


@pytest.mark.parametrize("encoding", [Encoding.TENSORRT, Encoding.DLA])
def test_rounding_a_scale_clips_no_activation(resnet34: Exported, encoding: Encoding) -> None:
    constants = resnet34.quantised(encoding).graph.initializers
    for edge in place(resnet34.model.graph, encoding):
        chosen = resnet34.ranges[edge.range_of]
        largest = max(abs(chosen.low), abs(chosen.high))
        largest_int8 = 127 * float(array(constants[f"{edge.tensor}.scale"]))
        # The scale is rounded up by less than one step of float16, which has ten fraction bits.
        assert largest <= largest_int8 < largest * (1 + 2**-10)


def test_integers_times_scales_are_the_weights(
    quantised: tuple[Encoding, ir.Model], resnet34: Exported
) -> None:
    original = resnet34.model.graph.initializers
    for node in quantised[1].graph:
        if node.op_type == "Conv":
            dequantize = node.inputs[1].producer()  # type: ignore[union-attr]
            assert dequantize is not None
            integers, scales = array(dequantize.inputs[0]), array(dequantize.inputs[1])
            steps = scales.astype(np.float64)[:, None, None, None]
            exact = array(original[f"{node.name}.weight"])
            if integers.shape != exact.shape:  # the stem for CPUs, see space_to_depth.py
                exact = space_to_depth_kernel(exact, [KernelAxis(7, 3), KernelAxis(7, 3)])
            error = np.abs(integers * steps - exact)
            # Half a step, plus the float32 rounding of the scale times 127.
            is_clipped = (error > steps * (0.5 + 127 * 2**-23)).reshape(len(integers), -1)
            assert np.abs(integers.astype(int)).max() <= 127
            if (
                quantised[0] is Encoding.CPU
            ):  # only weights of pairs that would saturate are clipped
                pairs = added_pairs(integers.shape)
                sums = integers.reshape(len(integers), -1).astype(int)[:, pairs].sum(axis=2)
                channels, found = np.nonzero(np.abs(sums) == LARGEST_PAIR)
                is_clipped[channels[:, None], pairs[found]] = False
            assert not is_clipped.any()


def test_cpu_biases_have_the_scale_of_the_accumulator(resnet34: Exported) -> None:
    for node in resnet34.quantised(Encoding.CPU).graph:
        if node.op_type in ("Conv", "Gemm"):
            x, weight, bias = (value.producer() for value in node.inputs)  # type: ignore[union-attr]
            assert x is not None
            assert weight is not None
            assert bias is not None
            expected = array(x.inputs[1]) * array(weight.inputs[1])
            np.testing.assert_array_equal(array(bias.inputs[1]), expected)


def test_no_float_weights_remain(quantised: tuple[Encoding, ir.Model]) -> None:
    weights = [
        name
        for name, value in quantised[1].graph.initializers.items()
        if name.endswith(".weight") and value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    ]
    assert weights == []
    assert all(value.uses() for value in quantised[1].graph.initializers.values())


def test_logits_are_close_to_fp32(quantised: tuple[Encoding, ir.Model], resnet34: Exported) -> None:
    encoding, model = quantised
    logits = OnnxRuntimeCpu(to_bytes(model), encoding).run(resnet34.images)
    ratios = sqnr_db(resnet34.pytorch(resnet34.images), logits)
    # A wrong scale or zero point gives at most 5 dB.
    assert np.median(ratios) > 15


@pytest.mark.parametrize("encoding", ALL)
def test_logits_match_onnxs_reference_evaluator(encoding: Encoding) -> None:
    model = to_onnx(make_classifier(), 32)
    edges = place(model.graph, encoding)
    insert_qdq(model, edges, {edge.range_of: Range(low=-2.5, high=7.3) for edge in edges}, encoding)
    graph = to_bytes(model)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    (expected,) = ReferenceEvaluator(onnx.load_from_string(graph)).run(None, {"images": images})
    logits = OnnxRuntimeCpu(graph, encoding).run(images)
    # Implementations may round sums half-way between two integers differently. The difference is
    # far smaller than the noise of INT8 itself, which is at 20 dB.
    assert np.median(sqnr_db(np.asarray(expected), logits)) > 35


def test_a_missing_range_is_an_error(resnet34: Exported) -> None:
    model = resnet34.model.clone()
    with pytest.raises(KeyError):
        insert_qdq(model, place(model.graph, Encoding.CPU), {}, Encoding.CPU)


def test_a_convolution_without_quantised_input_is_float(resnet34: Exported) -> None:
    model = resnet34.model.clone()
    edges = [edge for edge in place(model.graph, Encoding.TENSORRT) if edge.tensor != "maxpool"]
    insert_qdq(model, edges, resnet34.ranges, Encoding.TENSORRT)
    assert coverage(model.graph, Encoding.TENSORRT).int8_convs == 35
