"""The decision between two candidates: McNemar's exact test, and the estimate of more images."""

from __future__ import annotations

import math

import numpy as np
import pytest

from resdeploy.export.preprocessing_search.decision import images_to_separate, is_farther, is_worse
from resdeploy.statistics import PairedAccuracy


def paired(lost: int, gained: int, images: int = 1000) -> PairedAccuracy:
    return PairedAccuracy(
        images=images, baseline_correct=lost, candidate_correct=gained, lost=lost, gained=gained
    )


@pytest.mark.parametrize("alpha", [0.05, 1e-3, 1e-6])
def test_worse_is_decided_by_the_exact_binomial_tail(alpha: float) -> None:
    for lost in range(40):
        for gained in range(40):
            count = lost + gained
            tail = sum(math.comb(count, k) for k in range(gained + 1)) / 2**count
            expected = lost > gained and tail <= alpha
            assert is_worse(paired(lost, gained), alpha) is expected


def test_the_estimated_images_separate_two_candidates() -> None:
    images = images_to_separate(paired(30, 20), 1e-3)
    assert images is not None
    factor = images / 1000
    assert is_worse(paired(round(30 * factor * 1.1), round(20 * factor * 1.1)), 1e-3)
    assert not is_worse(paired(round(30 * factor * 0.8), round(20 * factor * 0.8)), 1e-3)


def test_equally_accurate_candidates_need_no_number_of_images() -> None:
    assert images_to_separate(paired(0, 0), 1e-3) is None
    assert images_to_separate(paired(20, 20), 1e-3) is None


def test_a_divergence_must_be_far_and_certain() -> None:
    near = np.array([0.01, 0.008, 0.009, 0.011, 0.012])
    assert is_farther(near, near * 1.6, 1e-3, 256)
    assert not is_farther(near, near * 1.4, 1e-3, 256)  # certain, but not far
    assert is_farther(near, near * 5, 1e-3, 255)
    assert not is_farther(near, near * 3.9, 1e-3, 255)
    uncertain = np.array([0.05, 0.005, 0.1, 0.01, 0.09])
    assert not is_farther(near, uncertain, 1e-3, 256)


def test_another_geometry_must_be_worse_by_some_points() -> None:
    assert is_worse(paired(140, 40), 1e-3)
    assert not is_worse(paired(130, 50), 1e-3, points=5.0)  # 8 points, but its bound is below 5
    assert is_worse(paired(180, 40), 1e-3, points=5.0)
