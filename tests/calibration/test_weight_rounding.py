"""Tests of the rounding of weights: no pair exceeds its limit, and errors are compensated."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resdeploy.calibration.weight_rounding import (
    DAMPING,
    STEP_FACTORS,
    clip_pairs,
    round_weights,
)
from resdeploy.export.graph.saturation import added_pairs, saturating_pairs

SHAPES = [
    (4, 16, 3, 3), (4, 2, 3, 3), (4, 12, 4, 4), (4, 3, 7, 7), (4, 5, 1, 1), (4, 1, 3, 3), (4, 64),
    (3, 1, 1, 1),
]  # fmt: skip


def moments_of(inputs: np.ndarray) -> np.ndarray:
    deviations = inputs - inputs.mean(axis=0)
    found: np.ndarray = deviations.T @ deviations / len(inputs)
    return found


def error(weight: np.ndarray, rounded: tuple[np.ndarray, np.ndarray], moments: np.ndarray) -> float:
    """Return the squared error of the outputs, with the damping of the moments."""
    integers, scales = rounded
    difference = weight - integers * scales[:, None].astype(np.float64)
    energies = np.diag(moments)
    damping = DAMPING * energies[energies > 0].mean() if energies.any() else 1.0
    damped = moments + damping * np.eye(len(moments))
    return float(np.einsum("ok,kl,ol->", difference, damped, difference))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(["normal", "equal", "signs", "zero", "tiny", "huge"]),
    dead=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_no_pair_saturates_and_the_error_is_not_larger_than_that_of_clipping(
    shape: tuple[int, ...], seed: int, kind: str, dead: float
) -> None:
    random = np.random.default_rng(seed)
    count = int(np.prod(shape[1:]))
    weight = random.standard_normal((shape[0], count)) * {"tiny": 1e-9, "huge": 1e6}.get(kind, 1.0)
    if kind in ("equal", "zero", "signs"):
        weight = np.sign(weight) if kind == "signs" else np.full_like(weight, kind == "equal")
    inputs = np.maximum(
        random.standard_normal((60, count)) @ random.standard_normal((count, count)), 0
    )
    inputs[:, random.random(count) < dead] = 0
    moments, pairs = moments_of(inputs), added_pairs(shape)
    rounded, clipped = round_weights(weight, moments, pairs), clip_pairs(weight, pairs)
    for integers, scales in (rounded, clipped):
        assert not len(saturating_pairs(integers.reshape(shape)))
        assert integers.min() >= -127
        assert (scales > 0).all()
        assert scales.dtype == np.float32
    # The errors that decide are sums in float32, and a scale in float32 is off by 6e-8 of itself.
    smallest = 1e-14 * error(weight, (np.zeros_like(weight), clipped[1]), moments) + 1e-30
    assert error(weight, rounded, moments) <= 1.001 * error(weight, clipped, moments) + smallest


def test_columns_are_compensated_as_by_least_squares() -> None:
    """Round one column at a time, and solve for all others with NumPy's least squares."""
    random = np.random.default_rng(0)
    inputs = random.standard_normal((200, 6)) @ random.standard_normal((6, 6))
    weight = random.standard_normal((3, 6))
    moments = moments_of(inputs)
    energies = np.diag(moments)
    damping = np.sqrt(DAMPING * energies.mean()) * np.eye(6)
    deviations = (inputs - inputs.mean(axis=0)) / np.sqrt(len(inputs))
    rows = np.concatenate([deviations, damping])  # rows.T @ rows are the damped moments
    candidates = []
    for factor in STEP_FACTORS:
        scales = (np.abs(weight).max(axis=1) / 127 * factor).astype(np.float32).astype(np.float64)
        exact = weight / scales[:, None]
        rest, goals = list(np.argsort(energies)), exact.copy()
        integers = np.zeros_like(exact)
        while rest:
            column = rest.pop()
            integers[:, column] = np.clip(np.rint(goals[:, column]), -127, 127)
            done = [other for other in range(6) if other not in rest]
            lost = rows[:, done] @ (exact - integers)[:, done].T
            goals[:, rest] = exact[:, rest] + np.linalg.lstsq(rows[:, rest], lost, rcond=None)[0].T
        candidates.append((integers, scales))
    errors = [
        np.square(rows @ (weight - integers * scales[:, None]).T).sum(axis=0)
        for integers, scales in candidates
    ]
    found, _ = round_weights(weight, moments, np.empty((0, 2), dtype=np.intp))
    for output, best in enumerate(np.argmin(errors, axis=0)):
        np.testing.assert_array_equal(found[output], candidates[best][0][output])


def test_a_pair_that_exceeds_its_limit_is_the_best_of_all_pairs() -> None:
    """Compare with all pairs of integers: of correlated inputs, of unequal energies."""
    pairs = np.array([[0, 1]])
    for seed in range(20):
        random = np.random.default_rng(seed)
        inputs = random.standard_normal((50, 2)) @ random.standard_normal((2, 2)) * [1, 3]
        weight = np.abs(random.standard_normal((1, 2))) + 0.5
        moments = moments_of(inputs)
        integers, scales = round_weights(weight, moments, pairs)
        best = min(
            error(weight, (np.array([pair]), scales), moments)
            for pair in product(range(-8, 128), repeat=2)
            if min(pair) < 0 or sum(pair) <= 128
        )
        # Rounding one after the other may miss the best of the neighbouring integers, by far less
        # than a step: the error of one step of the input with more energy.
        step = float(scales[0]) ** 2 * np.diag(moments).max()
        assert error(weight, (integers, scales), moments) <= best + step


def test_if_all_pairs_exceed_the_limit_all_weights_are_rounded_more_coarsely() -> None:
    weight = np.random.default_rng(0).uniform(0.7, 1.0, (8, 16))
    scales = weight.max(axis=1) / 64
    plain = np.rint(weight / scales[:, None]), scales.astype(np.float32)
    moments, pairs = np.eye(16), np.arange(16).reshape(8, 2)
    rounded = round_weights(weight, moments, pairs)
    assert error(weight, rounded, moments) <= 1.001 * error(weight, plain, moments)


def test_without_pairs_that_exceed_the_limit_clipping_is_plain_rounding() -> None:
    weight = np.array([[1.0, -0.7, 0.2, 0.5]])
    integers, scales = clip_pairs(weight, np.array([[0, 1], [2, 3]]))
    np.testing.assert_array_equal(integers, np.rint(weight / scales[:, None].astype(np.float64)))


@pytest.mark.parametrize("largest", [1e-9, 1e-4, 1.0, 1e4, 1e9])
def test_scales_are_float16_values_unless_weights_are_too_large_for_them(largest: float) -> None:
    _, scales = clip_pairs(np.array([[largest, -0.3 * largest]]), np.array([[0, 1]]))
    assert np.isfinite(scales).all()
    if largest < 1e8:
        np.testing.assert_array_equal(scales, scales.astype(np.float16).astype(np.float32))
