"""By how much channels are scaled."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from resdeploy.calibration.equalization import SMALLEST_SHARE, STRENGTH, channel_factors

PEAKS = hnp.arrays(np.float32, (5, 4), elements=st.floats(0, 2.0**60, width=32))


def peaks(*channels: float, images: int = 3) -> npt.NDArray[np.float32]:
    return np.tile(np.array(channels, dtype=np.float32), (images, 1))


def test_a_narrow_channel_is_widened_by_most_of_what_it_lacks() -> None:
    np.testing.assert_allclose(
        channel_factors([peaks(8, 4, 2)]), [1, 0.5**STRENGTH, 0.25**STRENGTH], rtol=1e-6
    )


def test_tensors_count_by_their_own_widest_channel() -> None:
    small_and_large = [peaks(1, 0.5), peaks(50, 100)]
    np.testing.assert_array_equal(channel_factors(small_and_large), [1, 1])


@pytest.mark.parametrize("silent", [0.0, 1e-30, 1.0])
def test_a_silent_channel_keeps_room_to_speak(silent: float) -> None:
    assert channel_factors([peaks(8, silent)])[1] == pytest.approx(SMALLEST_SHARE**STRENGTH)


def test_nothing_but_zeros_is_left_as_it_is_or_scaled_alike() -> None:
    assert len(set(channel_factors([peaks(0, 0, 0)]).tolist())) == 1


def test_one_odd_image_of_many_does_not_decide() -> None:
    usual = peaks(8, 2, images=400)
    usual[7] = [8, 800]
    np.testing.assert_array_equal(channel_factors([usual]), channel_factors([peaks(8, 2)]))


@given(PEAKS, st.permutations(range(5)))
def test_factors_are_shares_for_any_images_in_any_order(
    seen: npt.NDArray[np.float32], order: list[int]
) -> None:
    factors = channel_factors([seen])
    assert factors.dtype == np.float32
    assert ((factors > 0) & (factors <= 1)).all()
    np.testing.assert_array_equal(factors, channel_factors([seen[order]]))
