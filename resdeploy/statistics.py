"""Comparing two networks that saw the same images, and two programs that ran in turns.

Shape letters: N images, K classes, R rounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

MOST_IMAGES = 10_000_000
FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.integer]
BoolArray = npt.NDArray[np.bool_]


class Verdict(str, Enum):
    """What the evidence says about a claim."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


def sqnr_db(reference: FloatArray, logits: FloatArray) -> npt.NDArray[np.float64]:
    """Signal to quantisation noise ratio of each image's logits, (N, K), (N, K) -> (N,), in dB.

    10 log10(sum reference^2 / sum (logits - reference)^2), capped at 200 dB where they are equal.
    Never pool over images: a few odd ones would decide the result.
    """
    exact = reference.astype(np.float64)
    signal = np.maximum(np.square(exact).sum(axis=1), 1e-280)  # far below any, and far from zero
    noise = np.square(logits.astype(np.float64) - exact).sum(axis=1)
    ratio = signal / np.maximum(noise, signal * 1e-20)
    return np.asarray(10 * np.log10(ratio), dtype=np.float64)


def agreement_percent(reference: FloatArray, logits: FloatArray) -> float:
    """Share of images, in percent, whose most likely class is the same: (N, K), (N, K)."""
    return float(100 * np.mean(reference.argmax(axis=1) == logits.argmax(axis=1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedAccuracy:
    """Two classifiers' right and wrong answers on the same images."""

    images: int
    baseline_right: int
    candidate_right: int
    lost: int
    """Images that only the baseline has right."""
    gained: int
    """Images that only the candidate has right."""

    @property
    def drop(self) -> float:
        """Accuracy lost, in percentage points; negative when the candidate is better."""
        return 100 * (self.lost - self.gained) / self.images

    def drop_bound(self, confidence: float = 0.95) -> float:
        """One-sided upper bound of the true drop, in percentage points."""
        return 100 * upper_bound_of_difference(self.lost, self.gained, self.images, confidence)

    def drop_least(self, confidence: float = 0.95) -> float:
        """One-sided lower bound of the true drop, in percentage points."""
        return -100 * upper_bound_of_difference(self.gained, self.lost, self.images, confidence)

    @property
    def mcnemar_p(self) -> float:
        """Two-sided p-value that both are equally good, from the answers that differ alone.

        Source: McNemar, "Note on the sampling error of the difference between correlated
        proportions or percentages", Psychometrika 12 (1947) 153-157; exact, by the binomial.
        """
        differing = self.lost + self.gained
        tail = sum(math.comb(differing, k) for k in range(min(self.lost, self.gained) + 1))
        return min(1.0, 2 * float(Fraction(tail, 2**differing)))

    def images_to_decide(self, max_drop: float) -> int | None:
        """How many images would decide if answers went on to differ as often as so far.

        Returns:
            A number rounded up to two digits; None where even `MOST_IMAGES` would not do.
        """

        def decides(images: int) -> bool:
            lost, gained = (images / self.images * count for count in (self.lost, self.gained))
            return _verdict(lost, gained, images, max_drop) is not Verdict.INCONCLUSIVE

        images = self.images
        while not decides(images):
            images = math.ceil(1.05 * images)
            if images > MOST_IMAGES:
                return None
        digits = int(10 ** max(len(str(images)) - 2, 0))
        return math.ceil(images / digits) * digits

    def verdict(self, max_drop: float) -> Verdict:
        """Whether the drop is at most `max_drop` points, at 95 % confidence either way."""
        return _verdict(self.lost, self.gained, self.images, max_drop)


def _verdict(lost: float, gained: float, images: int, max_drop: float) -> Verdict:
    most = 100 * upper_bound_of_difference(lost, gained, images, 0.95)
    least = -100 * upper_bound_of_difference(gained, lost, images, 0.95)
    return judge(least, most, max_drop)


def judge(low: float, high: float, limit: float) -> Verdict:
    """Whether what lies between `low` and `high` is at most `limit`."""
    if high <= limit:
        return Verdict.PASS
    return Verdict.FAIL if low > limit else Verdict.INCONCLUSIVE


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """One that fails decides, then one that is open."""
    found = set(verdicts)
    return next((v for v in (Verdict.FAIL, Verdict.INCONCLUSIVE) if v in found), Verdict.PASS)


def wilson_interval(right: int, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval of an accuracy, in percent, from `right` answers of `images`.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", Journal
    of the American Statistical Association 22 (1927) 209-212.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, weight = right / images, z * z / images
    middle = (share + weight / 2) / (1 + weight)
    half = math.sqrt(share * (1 - share) * weight + weight * weight / 4) / (1 + weight)
    return 100 * max(middle - half, 0.0), 100 * min(middle + half, 1.0)


def compare_accuracy(
    baseline: FloatArray, candidate: FloatArray, labels: IntArray
) -> PairedAccuracy:
    """Pair the answers of two classifiers: logits (N, K), (N, K) and true classes (N,)."""
    return pair_answers(baseline.argmax(axis=1) == labels, candidate.argmax(axis=1) == labels)


def pair_answers(first: BoolArray, second: BoolArray) -> PairedAccuracy:
    """Pair what is known to be right of the same images: (N,), (N,)."""
    return PairedAccuracy(
        images=len(first),
        baseline_right=int(first.sum()),
        candidate_right=int(second.sum()),
        lost=int((first & ~second).sum()),
        gained=int((second & ~first).sum()),
    )


def upper_bound_of_difference(lost: float, gained: float, images: int, confidence: float) -> float:
    """Upper confidence bound of p(lost) - p(gained) for paired answers, as a share of 1.

    The score bound: the largest difference that the score test does not reject. Unlike the
    normal approximation it holds for small counts, and is above zero when nothing was lost.

    Source: Tango, "Equivalence test and confidence interval for the difference in proportions
    for the paired-sample design", Statistics in Medicine 17 (1998) 891-908, section 4.
    """
    z = NormalDist().inv_cdf(confidence)

    def score(difference: float) -> float:
        # p(gained) that is most likely if p(lost) - p(gained) were `difference`.
        a = 2 * images
        b = -lost - gained + (2 * images - lost + gained) * difference
        c = -gained * difference * (1 - difference)
        share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = images * (2 * share + difference * (1 - difference))
        gap = lost - gained - images * difference
        return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap)

    low, high = (lost - gained) / images, 1.0
    for _ in range(60):  # bisection: the score falls as the difference grows
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) > -z else (low, middle)
    return high


def ratio_interval(
    baseline: FloatArray, contender: FloatArray, *, confidence: float = 0.95, resamples: int = 2000
) -> tuple[float, float, float]:
    """How many times faster: baseline time / contender time over paired rounds, (R,), (R,).

    Returns:
        The median ratio of a round, with the percentile bootstrap interval over rounds.
        Rounds are resampled, not single times: what slows a round slows both sides of it.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3.
    """
    ratios = np.asarray(baseline, dtype=np.float64) / np.asarray(contender, dtype=np.float64)
    medians = _resampled_medians(ratios, resamples, np.random.default_rng(0))
    return float(np.median(ratios)), *_percentiles(medians, confidence)


def unpaired_ratio_interval(
    first: FloatArray, second: FloatArray, *, confidence: float = 0.95, resamples: int = 2000
) -> tuple[float, float, float]:
    """Median of `second` over that of `first`, which were measured apart: rounds (R,) and (S,).

    Returns:
        The ratio, with the percentile bootstrap interval over the rounds of each.
    """
    generator = np.random.default_rng(0)
    below, above = (
        _resampled_medians(np.asarray(times, dtype=np.float64), resamples, generator)
        for times in (first, second)
    )
    ratio = float(np.median(second) / np.median(first))
    return ratio, *_percentiles(above / below, confidence)


def median_interval(values: FloatArray, confidence: float) -> tuple[float, float] | None:
    """Two-sided interval of the true median, from values (N,) of any distribution.

    Two order statistics, as far apart as the binomial asks; None where N is too small for any.

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


def _resampled_medians(
    values: FloatArray, resamples: int, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    draws = generator.integers(0, len(values), size=(resamples, len(values)))
    return np.asarray(np.median(values[draws], axis=1), dtype=np.float64)


def _percentiles(values: FloatArray, confidence: float) -> tuple[float, float]:
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
