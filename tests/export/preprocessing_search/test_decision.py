"""The decision between two candidates: McNemar's exact test, and the estimate of more images."""

from __future__ import annotations

import math

import numpy as np
import pytest

from resdeploy.export.preprocessing_search.decision import (
    FEWEST_LOSSES,
    has_higher_loss,
    images_to_separate,
    is_farther,
    is_worse,
)
from resdeploy.statistics import PairedAccuracy

EQUAL = np.ones(1000)  # log losses that say nothing


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
    images = images_to_separate(paired(30, 20), EQUAL, EQUAL, 1e-3)
    assert images is not None
    factor = images / 1000
    assert is_worse(paired(round(30 * factor * 1.1), round(20 * factor * 1.1)), 1e-3)
    assert not is_worse(paired(round(30 * factor * 0.8), round(20 * factor * 0.8)), 1e-3)


def test_equally_accurate_candidates_need_no_number_of_images() -> None:
    assert images_to_separate(paired(0, 0), EQUAL, EQUAL, 1e-3) is None
    assert images_to_separate(paired(20, 20), EQUAL, EQUAL, 1e-3) is None


def test_a_divergence_must_be_far_and_certain() -> None:
    near = np.array([0.01, 0.008, 0.009, 0.011, 0.012])
    assert is_farther(near, near * 5, 1e-3)
    assert not is_farther(near, near * 3.9, 1e-3)  # certain, but not far
    uncertain = np.array([0.05, 0.005, 0.1, 0.01, 0.09])
    assert not is_farther(near, uncertain, 1e-3)


def draw_losses(gap: float, images: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Return log losses of which the second ones are higher by `gap` on average."""
    generator = np.random.default_rng(0)
    best = generator.exponential(1.0, images)
    return best, best + gap + generator.laplace(0, 0.2, images)


def test_a_higher_loss_is_told_from_an_equal_one() -> None:
    assert has_higher_loss(*draw_losses(0.05), 1e-3)
    assert not has_higher_loss(*draw_losses(0.0), 1e-3)
    assert not has_higher_loss(*reversed(draw_losses(0.05)), 1e-3)
    assert not has_higher_loss(EQUAL, EQUAL, 1e-3)


def test_few_losses_decide_nothing() -> None:
    best, other = draw_losses(1.0, FEWEST_LOSSES)
    assert has_higher_loss(best, other, 1e-3)
    assert not has_higher_loss(best[1:], other[1:], 1e-3)


def test_equal_losses_are_called_different_as_rarely_as_alpha_says() -> None:
    """Heavy tails as of log losses; 0.05 plus three standard errors of 2,000 draws is 0.065."""
    generator = np.random.default_rng(0)
    wrong = sum(
        has_higher_loss(*generator.exponential(1.0, (2, FEWEST_LOSSES)), 0.05) for _ in range(2000)
    )
    assert wrong / 2000 < 0.065


def test_losses_estimate_the_images_that_separate_equally_accurate_candidates() -> None:
    best, other = draw_losses(0.02)
    images = images_to_separate(paired(20, 20), best, other, 1e-3)
    assert images is not None
    assert images > 1000
    assert has_higher_loss(*draw_losses(0.02, 4 * images), 1e-3)
