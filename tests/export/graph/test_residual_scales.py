"""Residual additions that no kernel can round in another way."""

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


def halves_from_tie(ratios: list[float]) -> npt.NDArray[np.float64]:
    """How far every possible sum is from lying between two integers."""
    sums = PAIRS @ np.asarray(ratios)
    return np.asarray(np.abs(sums - np.floor(sums) - 0.5))


def in_fixed_point(ratios: list[float]) -> npt.NDArray[np.int64]:
    """Every sum with 22-bit multipliers, halves away from zero."""
    shift = 21 - int(np.floor(np.log2(max(ratios))))
    multipliers = np.rint(np.asarray(ratios, np.float32).astype(np.float64) * 2.0**shift)
    sums = PAIRS @ multipliers.astype(np.int64)
    half = 1 << (shift - 1)
    return np.asarray(np.sign(sums) * ((np.abs(sums) + half) >> shift))


def in_float32(ratios: list[float]) -> npt.NDArray[np.int64]:
    """Every sum in single precision, halves to the even neighbour."""
    single = np.asarray(ratios, np.float32)
    products = PAIRS.astype(np.float32) * single
    return np.rint(products[:, 0] + products[:, 1]).astype(np.int64)


@given(RATIOS, RATIOS)
def test_no_sum_is_near_a_half(first: float, second: float) -> None:
    fractions = closest_fractions([first, second])
    assert fractions is not None
    assert halves_from_tie(fractions).min() > 2.0**-11 - 1e-9
    np.testing.assert_array_equal(in_fixed_point(fractions), in_float32(fractions))
    # By far less than calibration knows the scales; the smallest ratios have fewest fractions.
    assert fractions == pytest.approx(
        [first, second], rel=0.01 if min(first, second) < 0.1 else 2e-3
    )


def test_without_them_kernels_do_differ() -> None:
    ratios = [0.5, 0.75]  # many sums lie exactly between two integers
    assert halves_from_tie(ratios).min() == 0
    assert not np.array_equal(in_fixed_point(ratios), in_float32(ratios))


@pytest.mark.parametrize("ratios", [[1e-4, 0.5], [4.5, 0.5]])
def test_ratios_that_have_no_fraction_are_left_alone(ratios: list[float]) -> None:
    assert closest_fractions(ratios) is None


def test_a_networks_additions_agree(resnet34: Exported) -> None:
    graph = resnet34.model.graph
    edges = place(graph, Encoding.CPU)
    scales = activation_parameters(graph, edges, resnet34.ranges, Encoding.CPU)
    assert has_aligned_scales(graph, edges, scales)


def test_one_scale_out_of_step_is_seen(resnet34: Exported) -> None:
    graph = resnet34.model.graph
    edges = place(graph, Encoding.CPU)
    scales = activation_parameters(graph, edges, resnet34.ranges, Encoding.CPU)
    moved = replace(
        scales["layer2.1.relu2"], scale=np.float32(scales["layer2.1.relu2"].scale * 1.0005)
    )
    assert not has_aligned_scales(graph, edges, {**scales, "layer2.1.relu2": moved})


def test_an_addition_in_float_is_seen(resnet34: Exported) -> None:
    graph = resnet34.model.graph
    edges = tuple(
        replace(edge, readers=tuple(r for r in edge.readers if r[0] != "layer3.2.add"))
        for edge in place(graph, Encoding.CPU)
    )
    kept = tuple(edge for edge in edges if edge.readers)
    scales = activation_parameters(graph, kept, resnet34.ranges, Encoding.CPU)
    assert not has_aligned_scales(graph, kept, scales)


def test_scales_move_by_less_than_a_tenth_of_a_percent(resnet34: Exported) -> None:
    graph = resnet34.model.graph
    edges = place(graph, Encoding.CPU)
    moved = activation_parameters(graph, edges, resnet34.ranges, Encoding.CPU)
    changes = []
    for edge in edges:
        ends = resnet34.ranges[edge.range_of]
        width = (max(ends.high, 0.0) - min(ends.low, 0.0)) / 255
        changes.append(abs(float(moved[edge.range_of].scale) / width - 1))
    assert 0 < max(changes) < 1e-3
