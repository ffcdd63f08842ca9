"""Statistics that compare two networks on the same images, or the times of two programs.

Shape letters: N images, K classes, R rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

MAX_IMAGES = 10_000_000  # the largest result of `fewest_images`
RESAMPLES = 2000  # number of resamples of each bootstrap
# OpenVINO's logits are not bit-exact and it starts more slowly; less gain is not worth that.
MIN_GAIN = 1.03  # smallest ratio of latencies for which another engine replaces the usual one
FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.integer]
BoolArray = npt.NDArray[np.bool_]


class Verdict(str, Enum):
    """The result of a check.

    REPRODUCED: This machine computes what the export computed, bit for bit or within a limit. That
    says nothing about accuracy, so it is never PASS, which needs a statistical decision.
    """

    PASS = "pass"
    REPRODUCED = "reproduced"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


def sqnr_db(reference: FloatArray, logits: FloatArray) -> npt.NDArray[np.float64]:
    """Return the signal-to-quantisation-noise ratio (N,) of each image's logits (N, K), in dB.

    The ratio is 10 log10(sum reference^2 / sum (logits - reference)^2), at most 200 dB. Do not sum
    over several images: a few outliers would determine the result.
    """
    exact = reference.astype(np.float64)
    signal = np.maximum(np.square(exact).sum(axis=1), 1e-280)  # above 0, below any real signal
    noise = np.square(logits.astype(np.float64) - exact).sum(axis=1)
    ratio = signal / np.maximum(noise, signal * 1e-20)
    return np.asarray(10 * np.log10(ratio), dtype=np.float64)


def kl_divergence(reference: FloatArray, logits: FloatArray) -> npt.NDArray[np.float64]:
    """Return the Kullback-Leibler divergence (N,) of each image's probabilities, in nats.

    It is the sum of p log(p / q), with p the softmax of the reference's logits (N, K) and q the
    softmax of `logits`: the expected loss of log-likelihood if p are the true probabilities.
    """
    exact, noisy = _log_softmax(reference), _log_softmax(logits)
    found = np.sum(np.exp(exact) * (exact - noisy), axis=1)
    return np.asarray(np.maximum(found, 0.0), dtype=np.float64)  # never negative but for rounding


def _log_softmax(logits: FloatArray) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def agreement_percent(reference: FloatArray, logits: FloatArray) -> float:
    """Return the percentage of images with the same predicted class, from logits (N, K)."""
    return float(100 * np.mean(reference.argmax(axis=1) == logits.argmax(axis=1)))


Judge = Callable[[float, float, int, float], Verdict]
"""Function of lost images, gained images, all images and the largest allowed drop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedAccuracy:
    """The numbers of correct predictions of two classifiers on the same images."""

    images: int
    baseline_correct: int
    candidate_correct: int
    lost: int
    """Images that only the baseline classifies correctly."""
    gained: int
    """Images that only the candidate classifies correctly."""

    @property
    def drop(self) -> float:
        """Drop in accuracy, in percentage points; negative if the candidate is better."""
        return 100 * (self.lost - self.gained) / self.images

    def drop_upper_bound(self) -> float:
        """Return the one-sided 95 % upper bound of the true drop, in percentage points."""
        return drop_bounds(self.lost, self.gained, self.images)[1]

    def drop_lower_bound(self) -> float:
        """Return the one-sided 95 % lower bound of the true drop, in percentage points."""
        return drop_bounds(self.lost, self.gained, self.images)[0]

    @property
    def mcnemar_p(self) -> float:
        """Two-sided p-value of the hypothesis that both classifiers are equally accurate.

        Source: McNemar, "Note on the sampling error of the difference between correlated
        proportions or percentages", Psychometrika 12 (1947) 153-157; exact binomial form.
        """
        differing = self.lost + self.gained
        tail = sum(math.comb(differing, k) for k in range(min(self.lost, self.gained) + 1))
        return min(1.0, 2 * float(Fraction(tail, 2**differing)))

    def images_to_decide(self, max_drop: float) -> int | None:
        """Estimate how many images a conclusive verdict needs; see `fewest_images`.

        Losses and gains are expected to stay as frequent as now.
        """
        lost, gained = self.lost / self.images, self.gained / self.images
        return images_for_verdict(lost, gained, max_drop, known=self.images)

    def verdict(self, max_drop: float) -> Verdict:
        """Return the result of the check that the drop is at most `max_drop` percentage points."""
        return judge_counts(self.lost, self.gained, self.images, max_drop)


def judge_counts(lost: float, gained: float, images: int, max_drop: float) -> Verdict:
    """Return the verdict of `PairedAccuracy.verdict` for these counts, which may be fractions."""
    return interval_verdict(*drop_bounds(lost, gained, images), max_drop)


def images_for_verdict(
    lost: float, gained: float, max_drop: float, *, known: int = 1, judge: Judge = judge_counts
) -> int | None:
    """Estimate how many images decide whether a drop is at most `max_drop` percentage points.

    Args:
        lost: Expected share of images, 0 to 1, that only the baseline classifies correctly.
        gained: Expected share of images that only the candidate classifies correctly.
        max_drop: Allowed accuracy drop, in percentage points.
        known: Number of images that have been seen.
        judge: Function that returns the verdict.
    """
    return fewest_images(
        lambda images: (
            judge(lost * images, gained * images, images, max_drop) is not Verdict.INCONCLUSIVE
        ),
        known,
    )


def fewest_images(
    decide: Callable[[int], bool], known: int = 1, most: int = MAX_IMAGES
) -> int | None:
    """Return the smallest number of images for which `decide` is true, rounded up to two digits.

    The result is at most `known` if these decide, and more if not; None if it is above `most`.
    """
    decided = decide(known)
    few, enough = (0, known) if decided else (known, 2 * known)
    while not decided and not decide(min(enough, most)):
        if enough >= most:
            return None
        few, enough = enough, 2 * enough
    while enough - few > 1:  # bisection: more images narrow the interval
        middle = (few + enough) // 2
        few, enough = (few, middle) if decide(middle) else (middle, enough)
    unit = int(10 ** max(len(str(enough)) - 2, 0))
    rounded = math.ceil(enough / unit) * unit
    return min(rounded, known) if decided else rounded


def interval_verdict(low: float, high: float, limit: float) -> Verdict:
    """Return PASS if both ends are at most `limit`, FAIL if both are above, else INCONCLUSIVE."""
    if high <= limit:
        return Verdict.PASS
    return Verdict.FAIL if low > limit else Verdict.INCONCLUSIVE


def worst_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst verdict, in the order FAIL, INCONCLUSIVE, REPRODUCED, PASS."""
    order = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.REPRODUCED, Verdict.PASS)
    return min(verdicts, key=order.index, default=Verdict.PASS)


def wilson_interval(correct: int, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided confidence interval of an accuracy, in percent.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", Journal
    of the American Statistical Association 22 (1927) 209-212.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, weight = correct / images, z * z / images
    middle = (share + weight / 2) / (1 + weight)
    half = math.sqrt(share * (1 - share) * weight + weight * weight / 4) / (1 + weight)
    return 100 * max(middle - half, 0.0), 100 * min(middle + half, 1.0)


def compare_accuracy(
    baseline: FloatArray, candidate: FloatArray, labels: IntArray
) -> PairedAccuracy:
    """Compare the predictions of two classifiers, from logits (N, K) and true classes (N,)."""
    return pair_predictions(baseline.argmax(axis=1) == labels, candidate.argmax(axis=1) == labels)


def pair_predictions(first: BoolArray, second: BoolArray) -> PairedAccuracy:
    """Compare two classifiers, from arrays (N,) that are True where a prediction is correct."""
    return PairedAccuracy(
        images=len(first),
        baseline_correct=int(first.sum()),
        candidate_correct=int(second.sum()),
        lost=int((first & ~second).sum()),
        gained=int((second & ~first).sum()),
    )


def upper_bound_of_difference(lost: float, gained: float, images: int, confidence: float) -> float:
    """Return the one-sided upper confidence bound of p(lost) - p(gained) for paired predictions.

    This score bound is the largest difference that the score test does not reject. Unlike the
    normal approximation, it is valid for small counts, and above 0 if nothing was lost.

    Source: Tango, "Equivalence test and confidence interval for the difference in proportions
    for the paired-sample design", Statistics in Medicine 17 (1998) 891-908, section 4.
    """
    z = NormalDist().inv_cdf(confidence)

    def score(difference: float) -> float:
        # `share` is the maximum likelihood estimate of p(gained) for this difference.
        a = 2 * images
        b = -lost - gained + (2 * images - lost + gained) * difference
        c = -gained * difference * (1 - difference)
        share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = images * (2 * share + difference * (1 - difference))
        gap = lost - gained - images * difference
        return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap)

    low, high = (lost - gained) / images, 1.0
    for _ in range(60):  # bisection: the score decreases as the difference grows
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) > -z else (low, middle)
    return high


def ratio_interval(baseline: FloatArray, contender: FloatArray) -> tuple[float, float, float]:
    """Estimate a speedup, baseline time / contender time, from the times of paired rounds (R,).

    Return the median ratio of the rounds, and the ends of its 95 % percentile bootstrap interval.
    Rounds are resampled, not single times, because a disturbance slows both times of a round.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3.
    """
    ratios = np.asarray(baseline, dtype=np.float64) / np.asarray(contender, dtype=np.float64)
    medians = _resampled_medians(ratios, np.random.default_rng(0))
    return float(np.median(ratios)), *_percentiles(medians, 0.95)


def unpaired_ratio_interval(
    first: FloatArray, second: FloatArray, *, confidence: float
) -> tuple[float, float, float]:
    """Estimate median of `second` / median of `first`, measured separately: shapes (R,) and (S,).

    Return the ratio, and the ends of its percentile bootstrap interval.
    """
    generator = np.random.default_rng(0)
    below, above = (_resampled_medians(times, generator) for times in (first, second))
    ratio = float(np.median(second) / np.median(first))
    return ratio, *_percentiles(above / below, confidence)


def median_interval(values: FloatArray, confidence: float) -> tuple[float, float] | None:
    """Return the two-sided interval of the true median, from values (N,) of any distribution.

    The ends are order statistics, chosen by the binomial distribution. The result is None if N is
    too small.

    Source: Conover, "Practical Nonparametric Statistics" (1999), section 3.2.
    """
    count, tail, outside = len(values), 0, 0
    while 2 * (outside + math.comb(count, tail)) <= (1 - confidence) * 2**count:
        outside += math.comb(count, tail)
        tail += 1
    if not tail:
        return None
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    return float(ordered[tail - 1]), float(ordered[count - tail])


def repeated_ratio_interval(
    baseline: Sequence[FloatArray], contender: Sequence[FloatArray]
) -> tuple[float, float, float]:
    """Estimate a speedup from several repetitions, each with the times of paired rounds (R,).

    Return the geometric mean over the repetitions, and the ends of its 95 % interval; for a single
    repetition, return the result of `ratio_interval`. Rounds of one repetition are more alike than
    rounds of different repetitions, which run in other processes and under another load. Therefore
    each repetition counts once, with the median ratio of its rounds. The interval is Student's, for
    the logarithms of these ratios.

    Source: Kalibera and Jones, "Rigorous benchmarking in reasonable time", ISMM 2013, section 5.
    """
    if len(baseline) < 2:
        return ratio_interval(baseline[0], contender[0])
    logs = [
        math.log(np.median(np.asarray(slow) / np.asarray(fast)))
        for slow, fast in zip(baseline, contender)
    ]
    centre = float(np.mean(logs))
    margin = student_975(len(logs) - 1) * float(np.std(logs, ddof=1)) / math.sqrt(len(logs))
    return math.exp(centre), math.exp(centre - margin), math.exp(centre + margin)


def student_975(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t for 1 to 4 degrees of freedom; above, that of 4."""
    return (12.706, 4.303, 3.182, 2.776)[min(freedom, 4) - 1]


def drop_bounds(lost: float, gained: float, images: int) -> tuple[float, float]:
    """Return the one-sided 95 % lower and upper bound of a drop, in percentage points."""
    lower = -100 * upper_bound_of_difference(gained, lost, images, 0.95)
    return lower, 100 * upper_bound_of_difference(lost, gained, images, 0.95)


def _resampled_medians(
    values: FloatArray, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    draws = generator.integers(0, len(values), size=(RESAMPLES, len(values)))
    return np.asarray(np.median(values[draws], axis=1), dtype=np.float64)


def _percentiles(values: FloatArray, confidence: float) -> tuple[float, float]:
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
