"""Tests of aligned scales, with which all kernels round residual additions alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdeploy.bundle.manifest import Encoding
from resdeploy.calibration.ranges import Range
from resdeploy.calibration.scales import QuantizationParameters
from resdeploy.export.graph.placement import place
from resdeploy.export.graph.qdq import activation_parameters
from resdeploy.export.graph.residual_scales import (
    FEWEST_NEGATIVE,
    closest_fractions,
    has_aligned_scales,
    with_scale,
)
from tests.export.conftest import Exported

PAIRS = np.stack(np.meshgrid(np.arange(-255, 256), np.arange(-255, 256)), axis=-1).reshape(-1, 2)
RATIOS = st.floats(0.02, 3.99)


def distance_from_half(ratios: list[float]) -> npt.NDArray[np.float64]:
    """Return the distance of every possible sum from the middle between two integers."""
    sums = PAIRS @ np.asarray(ratios)
    return np.asarray(np.abs(sums - np.floor(sums) - 0.5))


def in_fixed_point(ratios: list[float]) -> npt.NDArray[np.int64]:
    """Compute every sum with 22-bit multipliers; halves are rounded away from zero."""
    shift = 21 - int(np.floor(np.log2(max(ratios))))
    multipliers = np.rint(np.asarray(ratios, np.float32).astype(np.float64) * 2.0**shift)
    sums = PAIRS @ multipliers.astype(np.int64)
    half = 1 << (shift - 1)
    return np.asarray(np.sign(sums) * ((np.abs(sums) + half) >> shift))


def in_float32(ratios: list[float]) -> npt.NDArray[np.int64]:
    """Compute every sum in float32; halves are rounded to even."""
    single = np.asarray(ratios, np.float32)
    products = PAIRS.astype(np.float32) * single
    return np.rint(products[:, 0] + products[:, 1]).astype(np.int64)


@given(RATIOS, RATIOS)
def test_no_sum_is_near_a_half(first: float, second: float) -> None:
    fractions = closest_fractions([first, second])
    assert fractions is not None
    assert distance_from_half(fractions).min() > 2.0**-11 - 1e-9
    np.testing.assert_array_equal(in_fixed_point(fractions), in_float32(fractions))
    # Small ratios change more, because there are fewer fractions near them.
    assert fractions == pytest.approx(
        [first, second], rel=0.01 if min(first, second) < 0.1 else 2e-3
    )


def test_kernels_differ_for_other_ratios() -> None:
    ratios = [0.5, 0.75]  # many sums are half-way between two integers
    assert distance_from_half(ratios).min() == 0
    assert not np.array_equal(in_fixed_point(ratios), in_float32(ratios))


@pytest.mark.parametrize("ratios", [[1e-4, 0.5], [4.5, 0.5]])
def test_too_small_and_too_large_ratios_have_no_fractions(ratios: list[float]) -> None:
    assert closest_fractions(ratios) is None


def test_all_additions_of_a_network_are_aligned(resnet34: Exported) -> None:
    graph = resnet34.model.graph
    edges = place(graph, Encoding.CPU)
    scales = activation_parameters(graph, edges, resnet34.ranges, Encoding.CPU)
    assert has_aligned_scales(graph, edges, scales)


def test_a_changed_scale_is_detected(resnet34: Exported) -> None:
    graph = resnet34.model.graph
    edges = place(graph, Encoding.CPU)
    scales = activation_parameters(graph, edges, resnet34.ranges, Encoding.CPU)
    changed = replace(
        scales["layer2.1.relu2"], scale=np.float32(scales["layer2.1.relu2"].scale * 1.0005)
    )
    assert not has_aligned_scales(graph, edges, {**scales, "layer2.1.relu2": changed})


def test_an_addition_in_float_is_detected(resnet34: Exported) -> None:
    graph = resnet34.model.graph
    edges = tuple(
        replace(edge, readers=tuple(r for r in edge.readers if r[0] != "layer3.2.add"))
        for edge in place(graph, Encoding.CPU)
    )
    kept = tuple(edge for edge in edges if edge.readers)
    scales = activation_parameters(graph, kept, resnet34.ranges, Encoding.CPU)
    assert not has_aligned_scales(graph, kept, scales)


def aligned(graph: ir.Graph, highs: dict[str, float]) -> dict[str, QuantizationParameters]:
    """Return the scales for ranges of 0 to 4, of -2.5 to 2.5 for convolutions, and for `highs`."""
    edges = place(graph, Encoding.CPU)
    ranges = {}
    for tensor in {edge.range_of for edge in edges}:
        high = highs.get(tensor, 2.5 if "conv2" in tensor or "downsample" in tensor else 4.0)
        ranges[tensor] = Range(low=0.0 if "relu" in tensor else -high, high=high)
    return activation_parameters(graph, edges, ranges, Encoding.CPU)


def test_a_stage_has_one_scale_so_its_additions_round_nothing(resnet34: Exported) -> None:
    # The mean square of 4, 3.5, 5 and 5 is that of the range of all.
    highs = {f"layer2.{block}.relu2": high for block, high in enumerate((4.0, 3.5, 5.0, 5.0))}
    found = aligned(resnet34.model.graph, highs)
    stage = [
        found[tensor].scale
        for tensor in found
        if tensor.startswith("layer2") and not tensor.endswith("relu1")
    ]
    assert len(stage) == 9
    assert len(set(stage)) == 1
    mean = np.sqrt(np.mean(np.square([4, 3.5, 5, 5])))
    assert float(stage[0]) == pytest.approx(mean / 255, rel=1e-6)  # scales are float32
    assert found["layer2.1.relu1"].scale == np.float32(4 / 255)


def test_an_addition_with_a_far_larger_sum_begins_another_scale(resnet34: Exported) -> None:
    highs = {f"layer3.{block}.relu2": 4.0 * (1 if block < 3 else 5) for block in range(6)}
    highs |= {"layer4.1.conv2": 6.0}  # keeps its own scale, because much of it would be clipped
    found = aligned(resnet34.model.graph, highs)
    for tensor, high in highs.items():
        width = high if tensor.endswith("relu2") else 2 * high
        assert float(found[tensor].scale) == pytest.approx(width / 255, rel=0.01)
    assert len({found[f"layer3.{block}.relu2"].scale for block in range(6)}) == 2
    assert found["layer3.3.conv2"].scale == found["layer3.3.relu2"].scale
    edges = place(resnet34.model.graph, Encoding.CPU)
    assert has_aligned_scales(resnet34.model.graph, edges, found)


@given(st.integers(0, 255), st.floats(0.5, 2.0))
def test_another_scale_clips_negative_values_first(zero_point: int, factor: float) -> None:
    before = QuantizationParameters(scale=np.float32(1), zero_point=zero_point)
    after = with_scale(before, factor)
    positive, negative = 255 - after.zero_point, after.zero_point
    assert negative >= min(zero_point, FEWEST_NEGATIVE)
    assert positive >= min((255 - zero_point) / factor, 255 - FEWEST_NEGATIVE)
    if factor >= 1:  # nothing is clipped
        assert negative * factor >= min(zero_point, 255 * factor - (255 - zero_point) - factor) - 1
