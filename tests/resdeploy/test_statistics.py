"""Statistics agree with SciPy, with published numbers, and with simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import optimize, stats

from resdeploy.statistics import (
    PairedAccuracy,
    Verdict,
    agreement_percent,
    compare_accuracy,
    images_for_verdict,
    interval_verdict,
    kl_divergence,
    median_interval,
    pair_predictions,
    ratio_interval,
    repeated_ratio_interval,
    sqnr_db,
    student_975,
    unpaired_ratio_interval,
    upper_bound_of_difference,
    wilson_interval,
    worst_verdict,
)


def paired(lost: int, gained: int, images: int) -> PairedAccuracy:
    return PairedAccuracy(
        images=images, baseline_correct=lost, candidate_correct=gained, lost=lost, gained=gained
    )


# Signal to noise


def test_sqnr_of_a_known_error() -> None:
    reference = np.array([[3.0, 4.0]], dtype=np.float32)  # power 25
    logits = np.array([[3.0, 4.5]], dtype=np.float32)  # noise 0.25
    assert sqnr_db(reference, logits)[0] == pytest.approx(20.0)


def test_sqnr_is_computed_per_image() -> None:
    reference = np.array([[1.0, 0.0], [100.0, 0.0]])
    logits = np.array([[1.1, 0.0], [100.1, 0.0]])
    assert sqnr_db(reference, logits) == pytest.approx([20.0, 60.0])


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_sqnr_is_capped_if_nothing_differs(scale: float) -> None:
    logits = np.full((2, 3), scale, dtype=np.float32)
    assert sqnr_db(logits, logits) == pytest.approx([200.0, 200.0])


@pytest.mark.parametrize("shift", [0.0, -1e4, 1e4])
def test_divergence_is_that_of_the_probabilities(shift: float) -> None:
    generator = np.random.default_rng(0)
    reference, logits = generator.normal(0, 3, (2, 5, 10))
    exact, noisy = (np.exp(values) / np.exp(values).sum(1, keepdims=True)
                    for values in (reference, logits))  # fmt: skip
    found = kl_divergence(reference, logits + shift)  # a shift changes no probability
    assert found == pytest.approx(stats.entropy(exact, noisy, axis=1))
    assert kl_divergence(reference, reference + shift) == pytest.approx(np.zeros(5), abs=1e-9)
    assert (kl_divergence(reference, reference + shift) >= 0).all()


def test_sqnr_of_zeros_is_finite() -> None:
    zeros = np.zeros((1, 3), dtype=np.float32)
    assert np.isfinite(sqnr_db(zeros, zeros)).all()
    assert np.isfinite(sqnr_db(zeros, zeros + 1)).all()


def test_sqnr_of_nan_is_nan() -> None:
    assert math.isnan(sqnr_db(np.ones((1, 2)), np.array([[1.0, math.nan]]))[0])


@given(st.floats(-60, 60), st.integers(0, 2**31))
def test_sqnr_follows_the_size_of_the_noise(decibel: float, seed: int) -> None:
    reference = np.random.default_rng(seed).normal(size=(1, 10))
    logits = reference * (1 + 10 ** (-decibel / 20))
    # Float64 holds the sum to about 1e-16, so noise at -60 dB is exact to 1e-10.
    assert sqnr_db(reference, logits)[0] == pytest.approx(decibel, abs=1e-6)


def test_agreement_counts_predicted_classes() -> None:
    reference = np.array([[1.0, 2.0], [2.0, 1.0], [0.0, 1.0], [5.0, 4.0]])
    logits = np.array([[0.0, 9.0], [1.0, 2.0], [0.0, 0.1], [1.0, 0.0]])
    assert agreement_percent(reference, logits) == 75.0


# Paired accuracy


def test_predictions_are_paired() -> None:
    labels = np.array([0, 1, 0, 1])
    correct = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    other = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    result = compare_accuracy(correct, other, labels)
    assert (result.baseline_correct, result.candidate_correct) == (4, 2)
    assert (result.lost, result.gained, result.drop) == (2, 0, 50.0)
    assert compare_accuracy(other, correct, labels).drop == -50.0


def tango_by_likelihood(lost: int, gained: int, images: int, confidence: float) -> float:
    """Return the same bound by maximising the likelihood with SciPy, without Tango's formulas."""
    z = stats.norm.ppf(confidence)
    same = images - lost - gained

    def score(difference: float) -> float:
        # Find the p(gained) of maximum likelihood, with p(lost) = p(gained) + difference.
        def negative(share: float) -> float:
            p_lost = share + difference
            return -float(
                stats.multinomial.logpmf(
                    [lost, gained, same], images, [p_lost, share, 1 - p_lost - share]
                )
            )

        low, high = max(0.0, -difference), (1 - difference) / 2
        share = optimize.minimize_scalar(
            negative, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
        ).x
        variance = images * (2 * share + difference - difference**2)
        return float((lost - gained - images * difference) / math.sqrt(variance))

    start = (lost - gained) / images + 1e-9
    root: float = optimize.brentq(lambda d: score(d) + z, start, 0.999)  # pyright: ignore
    return root


@pytest.mark.parametrize(
    ("lost", "gained", "images"),
    [(7, 3, 100), (3, 7, 100), (12, 9, 44), (25, 5, 600), (1, 1, 50), (60, 40, 5000)],
)
def test_bound_is_the_largest_difference_not_rejected(lost: int, gained: int, images: int) -> None:
    ours = upper_bound_of_difference(lost, gained, images, 0.95)
    assert ours == pytest.approx(tango_by_likelihood(lost, gained, images, 0.95), abs=1e-5)


def test_bound_with_nothing_lost_is_the_binomial_score_bound() -> None:
    # Without discordant pairs Tango's bound becomes Wilson's for 0 of n: z^2 / (n + z^2).
    z = stats.norm.ppf(0.95)
    wilson = stats.binomtest(0, 200).proportion_ci(0.90, method="wilson").high
    ours = upper_bound_of_difference(0, 0, 200, 0.95)
    assert ours == pytest.approx(z**2 / (200 + z**2), abs=1e-9)
    assert ours == pytest.approx(wilson, abs=1e-9)


def test_bound_agrees_with_the_normal_approximation_for_many_images() -> None:
    lost, gained, images = 5200, 4800, 1_000_000
    p = (lost - gained) / images
    wald = p + stats.norm.ppf(0.95) * math.sqrt(((lost + gained) / images - p * p) / images)
    # The two differ by terms of order z^2 / n.
    assert upper_bound_of_difference(lost, gained, images, 0.95) == pytest.approx(wald, abs=5e-6)


counts = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 2000))


@given(counts, st.floats(0.6, 0.999))
def test_bound_lies_above_the_estimate(count: tuple[int, int, int], confidence: float) -> None:
    lost, gained, same = count
    assume(lost + gained + same > 0)
    images = lost + gained + same
    bound = upper_bound_of_difference(lost, gained, images, confidence)
    assert (lost - gained) / images - 1e-12 <= bound <= 1


@given(counts)
def test_bound_grows_with_losses_and_with_confidence(count: tuple[int, int, int]) -> None:
    lost, gained, same = count
    images = lost + gained + same + 1
    bound = upper_bound_of_difference(lost, gained, images, 0.95)
    assert upper_bound_of_difference(lost + 1, gained, images, 0.95) > bound
    assert upper_bound_of_difference(lost, gained, images, 0.99) >= bound


def test_bound_covers_the_true_drop_at_the_stated_confidence() -> None:
    generator = np.random.default_rng(0)
    p_lost, p_gained, images, trials = 0.03, 0.02, 500, 2000
    draws = generator.multinomial(images, [p_lost, p_gained, 1 - p_lost - p_gained], size=trials)
    covered = np.mean(
        [
            upper_bound_of_difference(int(lost), int(gained), images, 0.95) >= p_lost - p_gained
            for lost, gained, _ in draws
        ]
    )
    # Three standard errors of 2000 trials are 1.5 points; the score bound covers close to 95 %.
    assert 0.935 <= covered <= 0.97


@pytest.mark.parametrize(
    ("lost", "gained", "images", "verdict"),
    [
        (0, 0, 5000, Verdict.PASS),
        (20, 18, 5000, Verdict.PASS),
        (200, 20, 5000, Verdict.FAIL),
        (0, 0, 100, Verdict.INCONCLUSIVE),
        (60, 20, 5000, Verdict.INCONCLUSIVE),
        (0, 300, 5000, Verdict.PASS),
    ],
)
def test_verdicts_about_a_drop_of_one_point(
    lost: int, gained: int, images: int, verdict: Verdict
) -> None:
    assert paired(lost, gained, images).verdict(1.0) is verdict


@given(counts, st.floats(0, 5))
def test_a_verdict_agrees_with_the_bounds(count: tuple[int, int, int], allowed: float) -> None:
    lost, gained, same = count
    result = paired(lost, gained, lost + gained + same)
    verdict = result.verdict(allowed)
    assert (verdict is Verdict.PASS) == (result.drop_upper_bound() <= allowed)
    if verdict is Verdict.FAIL:
        assert result.drop > allowed


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_agrees_with_scipys_binomial_test(lost: int, gained: int) -> None:
    expected = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert paired(lost, gained, 1000).mcnemar_p == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("lost", "gained", "images"), [(0, 0, 24), (3, 1, 250), (60, 20, 5000), (9, 1, 100)]
)
@pytest.mark.parametrize("allowed", [0.5, 1.0, 2.0])
def test_the_estimated_number_of_images_gives_a_verdict(
    lost: int, gained: int, images: int, allowed: float
) -> None:
    def verdict(number: int) -> Verdict:
        factor = number / images
        return paired(round(factor * lost), round(factor * gained), number).verdict(allowed)

    needed = paired(lost, gained, images).images_to_decide(allowed)
    assert needed is not None
    # Counts must be integers: if few images differ, half an image moves the bound a lot.
    assert verdict(2 * needed) is not Verdict.INCONCLUSIVE
    if verdict(images) is Verdict.INCONCLUSIVE and needed // 2 >= images:
        assert verdict(needed // 2) is Verdict.INCONCLUSIVE


def test_images_for_verdict_follow_from_the_score_bound() -> None:
    # With no change in n images, the bound is z^2 / (n + z^2): 1 % at n = 268, 10 % at n = 25.
    assert images_for_verdict(0, 0, 1.0) == 270
    assert images_for_verdict(0, 0, 10.0) == 25
    assert images_for_verdict(0, 0, 1.0, known=5000) == 270
    assert images_for_verdict(0, 0, 0.0) is None
    assert images_for_verdict(0, 0, 100.0) == 1
    needed = images_for_verdict(0.05, 0.05, 1.0)
    assert needed is not None
    # The normal approximation: 1.645 * sqrt(0.1 / n) = 0.01 at n = 2,706.
    assert needed == pytest.approx(2706, rel=0.1)


def test_a_drop_equal_to_the_limit_stays_inconclusive() -> None:
    assert paired(10, 0, 1000).images_to_decide(1.0) is None


# Ratios of times


def test_ratio_of_rounds_that_are_slowed_together_is_exact() -> None:
    slow_down = np.random.default_rng(1).uniform(1, 5, 20)
    ratio, low, high = ratio_interval(4 * slow_down, slow_down)
    assert (ratio, low, high) == pytest.approx((4.0, 4.0, 4.0))


def test_ratio_interval_is_reproducible_and_contains_the_median() -> None:
    generator = np.random.default_rng(2)
    baseline, contender = generator.lognormal(1, 0.2, 30), generator.lognormal(0, 0.2, 30)
    first = ratio_interval(baseline, contender)
    assert first == ratio_interval(baseline, contender)
    assert first[1] <= first[0] <= first[2]


def test_ratio_interval_is_close_to_scipys_bootstrap() -> None:
    generator = np.random.default_rng(3)
    baseline, contender = generator.lognormal(1, 0.1, 40), generator.lognormal(0, 0.1, 40)
    peer = stats.bootstrap(
        (baseline / contender,), np.median, confidence_level=0.95, n_resamples=5000,
        method="percentile", rng=generator,
    ).confidence_interval  # fmt: skip
    _, low, high = ratio_interval(baseline, contender)
    # Two bootstraps of a few thousand draws differ by much less than the width of the interval.
    slack = 0.15 * (peer.high - peer.low)
    assert low == pytest.approx(peer.low, abs=slack)
    assert high == pytest.approx(peer.high, abs=slack)


# Comparing two versions


@pytest.mark.parametrize(("low", "high", "verdict"), [
    (0.9, 1.05, Verdict.PASS), (1.051, 1.2, Verdict.FAIL), (1.0, 1.1, Verdict.INCONCLUSIVE),
])  # fmt: skip
def test_verdict_of_an_interval(low: float, high: float, verdict: Verdict) -> None:
    assert interval_verdict(low, high, 1.05) is verdict


def test_the_worst_verdict_wins() -> None:
    assert worst_verdict([]) is Verdict.PASS
    order = [Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.REPRODUCED, Verdict.PASS]
    assert set(order) == set(Verdict)
    for position, worst in enumerate(order):
        assert worst_verdict(reversed(order[position:])) is worst


def test_bounds_of_a_drop_of_half_a_point() -> None:
    baseline = np.ones(5000, dtype=np.bool_)
    candidate = np.arange(5000) % 200 != 0
    paired = pair_predictions(baseline, candidate)
    assert paired.drop == pytest.approx(0.5)
    assert paired.verdict(0.2) is Verdict.FAIL
    assert 0.2 < paired.drop_lower_bound() < 0.5 < paired.drop_upper_bound()


@given(correct=st.integers(0, 500), wrong=st.integers(0, 500))
def test_wilson_interval_agrees_with_scipy(correct: int, wrong: int) -> None:
    assume(correct + wrong > 0)
    expected = stats.binomtest(correct, correct + wrong).proportion_ci(method="wilson")
    assert wilson_interval(correct, correct + wrong) == pytest.approx(
        (100 * expected.low, 100 * expected.high), abs=1e-6
    )


@pytest.mark.parametrize(("count", "rank"), [(8, 1), (12, 2), (24, 6), (32, 9)])
def test_the_interval_of_a_median_lies_between_order_statistics(count: int, rank: int) -> None:
    # P(fewer than `rank` of `count` values lie below the median), twice, is at most 1 %.
    assert 2 * stats.binom.cdf(rank - 1, count, 0.5) <= 0.01 < 2 * stats.binom.cdf(rank, count, 0.5)
    values = np.random.default_rng(0).permutation(np.arange(1.0, count + 1))
    assert median_interval(values, 0.99) == (rank, count + 1 - rank)


def test_seven_values_are_too_few_for_99_percent() -> None:
    assert median_interval(np.arange(7.0), 0.99) is None


def test_the_interval_of_a_median_covers_it() -> None:
    generator = np.random.default_rng(1)
    inside = 0
    for _ in range(1000):
        interval = median_interval(generator.exponential(size=12), 0.95)
        assert interval is not None
        inside += interval[0] <= math.log(2) <= interval[1]
    assert 950 <= inside <= 1000


def test_unpaired_ratio_of_times() -> None:
    generator = np.random.default_rng(2)
    first = 10 + generator.normal(0, 0.2, 15)
    second = 11 + generator.normal(0, 0.2, 21)
    ratio, low, high = unpaired_ratio_interval(first, second, confidence=0.95)
    assert low < ratio < high
    assert 1.05 < low < 1.1 < high < 1.15


def test_repetitions_that_differ_widen_the_interval_of_a_ratio() -> None:
    ratios = np.array([4.8, 5.0, 5.2, 5.1, 4.9])
    steady = [np.full(3, 10.0)] * 5
    centre, low, high = repeated_ratio_interval([np.full(3, 10 * r) for r in ratios], steady)
    expected = stats.t.interval(0.95, 4, loc=np.log(ratios).mean(), scale=stats.sem(np.log(ratios)))
    assert (low, high) == pytest.approx(np.exp(expected), rel=1e-4)  # three digits of t
    assert centre == pytest.approx(stats.gmean(ratios))


def test_a_single_repetition_uses_the_interval_of_its_rounds() -> None:
    slow, fast = np.array([40.0, 44.0, 42.0]), np.array([10.0, 10.0, 11.0])
    assert repeated_ratio_interval([slow], [fast]) == ratio_interval(slow, fast)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4])
def test_students_t(freedom: int) -> None:
    assert student_975(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=5e-4)
