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
    expect_changes,
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


def logits_of(generator: np.random.Generator, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Return logits of 10 classes, and the same with noise that grows with the logit."""
    clean = generator.gamma(2.0, 1.0, (images, 10))
    noisy = clean + generator.normal(0, 0.015, clean.shape) * (0.2 + clean)
    return clean, noisy


@given(st.integers(2, 9), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_the_expected_changes_are_those_of_all_pairs(images: int, classes: int, seed: int) -> None:
    """Check against loops over images, noises and ranks."""
    generator = np.random.default_rng(seed)
    clean = generator.normal(0, 1, (images, classes))
    noisy = clean + generator.normal(0, 0.5, clean.shape)
    true = generator.integers(0, classes, images)
    changed, lost = np.zeros((2, images))
    for i in range(images):
        ranks = sorted(range(classes), key=lambda c: -clean[i, c])
        for j in range(images):
            other = sorted(range(classes), key=lambda c: -clean[j, c])
            sums = [clean[i, a] + 2 * (noisy[j, b] - clean[j, b]) for a, b in zip(ranks, other)]
            predicted = ranks[int(np.argmax(sums))]
            changed[i] += (predicted != ranks[0]) / images / 2
            lost[i] += (int(ranks[0] == true[i]) - int(predicted == true[i])) / images / 2
    expected = expect_changes(clean, noisy, true)
    bound = [np.mean(rates) + 1.6448536 * np.std(rates) / images**0.5 for rates in (changed, lost)]
    assert expected.agreement == pytest.approx(100 - 100 * bound[0])
    assert expected.drop == pytest.approx(100 * bound[1])
    unknown = expect_changes(clean, noisy, None)
    assert unknown.agreement == expected.agreement
    assert unknown.drop == pytest.approx(100 - unknown.agreement)


def test_the_expected_agreement_bounds_the_truth_tighter_than_the_count() -> None:
    generator = np.random.default_rng(4)
    clean, noisy = logits_of(generator, 200_000)
    truth = count_changes(clean, noisy, None).agreement
    assert 95 < truth < 99
    draws = [(clean[i : i + 40], noisy[i : i + 40]) for i in range(0, 20_000, 40)]
    counted = np.array([count_changes(*draw, None).lowest_agreement() for draw in draws])
    expected = np.array([expect_changes(*draw, None).agreement for draw in draws])
    assert counted.mean() < expected.mean() < truth
    # Stated are 95 %. The noise of one rank is not that of another image's same rank, the
    # standard error is itself an estimate, and half of the images with small margins decide it.
    assert np.mean(expected <= truth) > 0.85


def test_further_images_reduce_the_weight_of_one_with_two_equal_logits() -> None:
    clean, noisy = logits_of(np.random.default_rng(7), 30)
    clean[0, :2] = noisy[0, :2] = 50.0
    noisy[0, 1] += 1e-3  # its noise is too small to change others
    further, _ = logits_of(np.random.default_rng(8), 200)
    alone = expect_changes(clean, noisy, None).agreement
    together = expect_changes(clean, noisy, None, further).agreement
    true = expect_changes(clean, noisy, clean.argmax(axis=1), further)
    assert alone < together < 100
    assert true.agreement == together
    assert true.drop == pytest.approx(100 - alone)


def test_images_that_were_not_computed_have_no_noise_to_add() -> None:
    clean, noisy = logits_of(np.random.default_rng(6), 60)
    some = clean.copy()
    some[:20] = noisy[:20]
    agreement = expect_changes(clean, some, None).agreement
    assert agreement == pytest.approx(expect_changes(clean, noisy, None).agreement, abs=2)
    assert agreement < count_changes(clean, some, None).agreement
    assert expect_changes(clean, clean, None).agreement == 100
