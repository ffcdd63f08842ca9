"""Tests of the histogram: bins, widening, and independence of order and batches."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from resdeploy.calibration.histogram import BINS, SMALLEST_EXPONENT, Histogram

values = hnp.arrays(
    np.float32, st.integers(0, 60), elements=st.floats(-(2.0**20), 2.0**20, width=32)
)


def histogram_of(*batches: npt.NDArray[np.float32]) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


@given(values, st.randoms())
def test_order_and_batches_do_not_matter(array: npt.NDArray[np.float32], random: object) -> None:
    whole = histogram_of(array)
    shuffled = array.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    parts = histogram_of(*np.array_split(shuffled, 3))
    assert whole.exponent == parts.exponent
    np.testing.assert_array_equal(whole.counts, parts.counts)


@given(values, values)
def test_a_sum_is_the_histogram_of_all_values(
    first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]
) -> None:
    apart = histogram_of(first), histogram_of(second)
    total = apart[0].plus(apart[1])
    whole = histogram_of(first, second)
    assert total.exponent == whole.exponent
    np.testing.assert_array_equal(total.counts, whole.counts)
    assert apart[0].exponent == histogram_of(first).exponent  # the parts are unchanged


@given(values)
@example(np.array([4096, -1e-45], np.float32))  # -1e-45 / width is -0.0
def test_every_value_is_in_its_bin(array: npt.NDArray[np.float32]) -> None:
    histogram = histogram_of(array)
    exact = np.floor(array.astype(np.float64) / histogram.width).astype(np.int64)
    expected = np.bincount(exact + BINS, minlength=2 * BINS)
    np.testing.assert_array_equal(histogram.counts, expected)


@given(st.floats(2.0**-20, 2.0**20, width=32))
def test_the_larger_side_uses_at_least_half_of_its_bins(largest: float) -> None:
    histogram = histogram_of(np.array([largest], np.float32))
    assert BINS / 2 <= largest / histogram.width < BINS


def test_memory_does_not_depend_on_the_number_of_values() -> None:
    small = histogram_of(np.ones(3, np.float32))
    large = histogram_of(
        *(np.random.default_rng(i).normal(size=10_000).astype(np.float32) for i in range(9))
    )
    assert small.counts.nbytes == large.counts.nbytes
    assert large.counts.sum() == 90_000


def test_zeros_do_not_widen_the_bins() -> None:
    histogram = histogram_of(np.zeros(5, np.float32))
    assert histogram.exponent == SMALLEST_EXPONENT
    assert histogram.counts[BINS] == 5
    assert math.isclose(histogram.centers[BINS], histogram.width / 2)
