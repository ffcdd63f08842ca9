"""Tests of aligned scales, with which all kernels round residual additions alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdeploy.bundle.manifest import Encoding
from resdeploy.export.graph.placement import place
from resdeploy.export.graph.qdq import activation_parameters
from resdeploy.export.graph.residual_scales import closest_fractions, has_aligned_scales
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


def test_scales_change_by_less_than_0_1_percent(resnet34: Exported) -> None:
    graph = resnet34.model.graph
    edges = place(graph, Encoding.CPU)
    changed = activation_parameters(graph, edges, resnet34.ranges, Encoding.CPU)
    changes = []
    for edge in edges:
        ends = resnet34.ranges[edge.range_of]
        width = (max(ends.high, 0.0) - min(ends.low, 0.0)) / 255
        changes.append(abs(float(changed[edge.range_of].scale) / width - 1))
    assert 0 < max(changes) < 1e-3
