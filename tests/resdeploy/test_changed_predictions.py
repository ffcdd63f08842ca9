"""Bounds of agreement and drop agree with SciPy and cover the truth as often as they state."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from resdeploy.changed_predictions import (
    ChangedPredictions,
    count_changes,
    highest_rate,
    images_needed,
)


def changes(images: int, changed: int) -> ChangedPredictions:
    return ChangedPredictions(
        images=images, changed=changed, lost=changed, gained=0, labelled=False
    )  # fmt: skip


@given(st.integers(1, 6000), st.floats(0, 1), st.floats(0.6, 0.9999))
def test_the_bound_is_clopper_pearsons(images: int, share: float, confidence: float) -> None:
    events = int(share * images)
    expected = stats.beta.ppf(confidence, events + 1, images - events) if events < images else 1.0
    assert highest_rate(events, images, confidence) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(("limit", "images"), [(99, 299), (99.5, 598), (98, 149), (0, 1)])
def test_images_needed_for_a_target(limit: float, images: int) -> None:
    assert images_needed(limit) == images
    assert changes(images, 0).lowest_agreement() >= limit
    if images > 1:
        assert changes(images - 1, 0).lowest_agreement() < limit


def test_no_number_of_images_shows_that_nothing_changes() -> None:
    assert images_needed(100) is None


def test_changes_are_counted_with_and_without_classes() -> None:
    baseline = np.array([[2.0, 1.0], [1.0, 2.0], [2.0, 1.0], [2.0, 1.0]])
    candidate = np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [2.0, 1.0]])
    unknown = count_changes(baseline, candidate, None)
    assert (unknown.changed, unknown.lost, unknown.gained) == (2, 2, 0)
    assert (unknown.agreement, unknown.drop) == (50, 50)
    known = count_changes(baseline, candidate, np.array([0, 1, 1, 0]))
    assert (known.changed, known.lost, known.gained, known.drop) == (2, 1, 1, 0)
    # Without classes, nothing shows that accuracy was lost: the changes may be gains.
    assert unknown.lowest_drop() < 0
    assert known.lowest_drop() < known.drop < known.highest_drop()


@pytest.mark.parametrize("images", [88, 300, 2560])
@pytest.mark.parametrize("rate", [0.001, 0.01, 0.034, 0.2])
def test_the_bound_of_the_agreement_covers_the_truth(images: int, rate: float) -> None:
    """Clopper-Pearson's bound is exact: the probability of a false bound is summed, not drawn."""
    counts = np.arange(images + 1)
    false = [highest_rate(int(count), images, 0.95) < rate for count in counts[: images // 3]]
    probability = stats.binom.pmf(counts[: images // 3], images, rate)
    assert float(probability[false].sum()) <= 0.05 + 1e-9


@pytest.mark.parametrize(
    ("images", "lost", "gained"),
    [(600, 0.005, 0.002), (440, 0.0075, 0.005), (128, 0.02, 0.02), (300, 0.004, 1e-9)],
)
def test_the_bound_of_the_drop_covers_the_truth(images: int, lost: float, gained: float) -> None:
    """The probability of a true bound is summed over all counts, not drawn."""
    chances = [lost, gained, 1 - lost - gained]
    covered = 0.0
    for a in range(16):
        for b in range(16):
            changes = ChangedPredictions(
                images=images, changed=a + b, lost=a, gained=b, labelled=True
            )
            if changes.highest_drop() >= 100 * (lost - gained):
                covered += stats.multinomial.pmf([a, b, images - a - b], images, chances)
    assert covered >= 0.95
