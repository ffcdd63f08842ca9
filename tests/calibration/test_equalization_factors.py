"""Tests of the equalisation factors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from resdeploy.calibration.equalization_factors import SMALLEST_SHARE, STRENGTH, channel_factors

PEAKS = hnp.arrays(np.float32, (5, 4), elements=st.floats(0, 2.0**60, width=32))


def peaks(*channels: float, images: int = 3) -> npt.NDArray[np.float32]:
    return np.tile(np.array(channels, dtype=np.float32), (images, 1))


def test_factors_are_powers_of_the_relative_ranges() -> None:
    np.testing.assert_allclose(
        channel_factors([peaks(8, 4, 2)]), [1, 0.5**STRENGTH, 0.25**STRENGTH], rtol=1e-6
    )


def test_ranges_are_relative_to_the_widest_channel_of_each_tensor() -> None:
    small_and_large = [peaks(1, 0.5), peaks(50, 100)]
    np.testing.assert_array_equal(channel_factors(small_and_large), [1, 1])


@pytest.mark.parametrize("peak", [0.0, 1e-30, 1.0])
def test_an_inactive_channel_has_the_smallest_factor(peak: float) -> None:
    assert channel_factors([peaks(8, peak)])[1] == pytest.approx(SMALLEST_SHARE**STRENGTH)


def test_channels_of_a_zero_tensor_have_equal_factors() -> None:
    assert len(set(channel_factors([peaks(0, 0, 0)]).tolist())) == 1


def test_one_outlier_image_does_not_change_the_factors() -> None:
    images = peaks(8, 2, images=400)
    images[7] = [8, 800]
    np.testing.assert_array_equal(channel_factors([images]), channel_factors([peaks(8, 2)]))


@given(PEAKS, st.permutations(range(5)))
def test_factors_are_in_0_to_1_and_do_not_depend_on_the_order(
    images: npt.NDArray[np.float32], order: list[int]
) -> None:
    factors = channel_factors([images])
    assert factors.dtype == np.float32
    assert ((factors > 0) & (factors <= 1)).all()
    np.testing.assert_array_equal(factors, channel_factors([images[order]]))
