"""Tests that space-to-depth does not change any bit of the outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resdeploy.bundle.manifest import INPUT_NAME, Encoding
from resdeploy.calibration.ranges import Range
from resdeploy.export.graph.coverage import coverage
from resdeploy.export.graph.placement import place
from resdeploy.export.graph.qdq import insert_qdq
from resdeploy.export.graph.space_to_depth import (
    KernelAxis,
    apply_space_to_depth,
    space_to_depth_kernel,
)
from resdeploy.export.graph.to_onnx import to_bytes, to_onnx
from resdeploy.export.quantization.recipe import QuantizationRecipe
from tests.export.conftest import SIZE, Exported
from tests.samples import make_classifier


@given(
    st.integers(1, 8), st.integers(1, 8), st.integers(0, 4), st.integers(0, 4), st.integers(4, 8),
    st.integers(4, 8), st.integers(0, 1000),
)  # fmt: skip
def test_the_kernel_for_blocks_computes_the_same_sums(
    height: int, width: int, above: int, left: int, rows: int, columns: int, seed: int
) -> None:
    """Compare with PyTorch's convolution; float64 represents all sums of these integers."""
    random = np.random.default_rng(seed)
    kernel = random.integers(-127, 128, (2, 3, height, width)).astype(np.int8)
    picture = random.integers(0, 256, (1, 3, 2 * rows, 2 * columns)).astype(np.uint8)
    above, left = min(above, height - 1), min(left, width - 1)
    pixels, weight = (torch.from_numpy(array).double() for array in (picture, kernel))
    expected = torch.nn.functional.conv2d(pixels, weight, stride=2, padding=(above, left))

    axes = (KernelAxis(height, above), KernelAxis(width, left))
    pads = [axis.pads(*size) for axis, *size in zip(axes, picture.shape[2:], expected.shape[2:])]
    # PyTorch orders the new channels by channel, row, column; SpaceToDepth by row, column, channel.
    blocks = torch.nn.functional.pixel_unshuffle(pixels, 2)
    blocks = blocks.reshape(1, 3, 4, rows, columns).transpose(1, 2).reshape(1, 12, rows, columns)
    padded = torch.nn.functional.pad(blocks, (*pads[1], *pads[0]))
    packed = torch.from_numpy(space_to_depth_kernel(kernel, axes)).double()
    assert min(min(pair) for pair in pads) >= 0
    assert torch.equal(torch.nn.functional.conv2d(padded, packed), expected)


def logits(model: ir.Model, images: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    # Without VNNI, the usual kernels saturate sums of neighbours, which only the packed weights
    # are rounded to avoid. These kernels never saturate.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(to_bytes(model), options)
    return np.asarray(session.run(None, {INPUT_NAME: images})[0])


def unpacked(exported: Exported) -> ir.Model:
    model = exported.model.clone()
    insert_qdq(model, place(model.graph, Encoding.CPU), exported.ranges, Encoding.CPU)
    return model


def test_the_logits_are_identical(resnet34: Exported) -> None:
    before, packed = unpacked(resnet34), unpacked(resnet34)
    apply_space_to_depth(packed)
    images = resnet34.images[:8]
    assert np.array_equal(logits(packed, images), logits(before, images))
    (blocks,) = (node for node in packed.graph if node.op_type == "SpaceToDepth")
    assert list(blocks.outputs[0].shape or ())[1:] == [12, SIZE // 2, SIZE // 2]
    assert packed.graph.initializers["conv1.weight.quantized"].shape == ir.Shape([64, 12, 4, 4])
    assert coverage(packed.graph, Encoding.CPU).int8_convs == 36


def test_only_the_graph_for_cpus_has_space_to_depth(resnet34: Exported) -> None:
    operators = {
        encoding: [node.op_type for node in resnet34.quantised(encoding).graph]
        for encoding in (Encoding.CPU, Encoding.TENSORRT, Encoding.DLA)
    }
    assert [names.count("SpaceToDepth") for names in operators.values()] == [1, 0, 0]


def test_a_stem_in_float_is_not_changed(resnet34: Exported) -> None:
    recipe = QuantizationRecipe(
        encoding=Encoding.CPU, calibrator="max", ranges=resnet34.ranges,
        in_float=frozenset({"conv1"}),
    )  # fmt: skip
    assert all(node.op_type != "SpaceToDepth" for node in recipe.apply(resnet34.model).graph)


@pytest.mark.parametrize(("size", "packed"), [(33, 0), (34, 1)])
def test_images_with_odd_sides_have_no_space_to_depth(size: int, packed: int) -> None:
    model = to_onnx(make_classifier(), size)
    edges = place(model.graph, Encoding.CPU)
    ranges = {edge.range_of: Range(low=-2.5, high=7.3) for edge in edges}
    graph = QuantizationRecipe(encoding=Encoding.CPU, calibrator="max", ranges=ranges).apply(model)
    assert [node.op_type for node in graph.graph].count("SpaceToDepth") == packed
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    expected = model.clone()
    insert_qdq(expected, edges, ranges, Encoding.CPU)
    assert np.array_equal(logits(graph, images), logits(expected, images))
