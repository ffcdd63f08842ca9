"""Statistics that compare two networks on the same images, or the times of two programs.

Shape letters: N images, K classes, R rounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

MAX_IMAGES = 10_000_000
"""The largest number of images that `PairedAccuracy.images_to_decide` considers."""
T_975 = (12.706, 4.303, 3.182, 2.776)
"""The 97.5 % quantiles of Student's t for 1, 2, 3 and 4 degrees of freedom."""
FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.integer]
BoolArray = npt.NDArray[np.bool_]


class Verdict(str, Enum):
    """The result of a statistical check."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


def sqnr_db(reference: FloatArray, logits: FloatArray) -> npt.NDArray[np.float64]:
    """Return the signal to quantisation noise ratio of each image's logits, in dB: (N,).

    10 log10(sum reference^2 / sum (logits - reference)^2), at most 200 dB. Do not pool the sums
    over images: a few outliers would determine the result.

    Args:
        reference: Logits (N, K).
        logits: Logits (N, K) of the other network.
    """
    exact = reference.astype(np.float64)
    signal = np.maximum(np.square(exact).sum(axis=1), 1e-280)  # below any real signal, and not 0
    noise = np.square(logits.astype(np.float64) - exact).sum(axis=1)
    ratio = signal / np.maximum(noise, signal * 1e-20)
    return np.asarray(10 * np.log10(ratio), dtype=np.float64)


def agreement_percent(reference: FloatArray, logits: FloatArray) -> float:
    """Return the share of images with the same predicted class, in percent, from logits (N, K)."""
    return float(100 * np.mean(reference.argmax(axis=1) == logits.argmax(axis=1)))


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
        """Drop of the accuracy in percentage points; negative if the candidate is better."""
        return 100 * (self.lost - self.gained) / self.images

    def drop_upper_bound(self, confidence: float = 0.95) -> float:
        """Return the one-sided upper bound of the true drop, in percentage points."""
        return 100 * upper_bound_of_difference(self.lost, self.gained, self.images, confidence)

    def drop_lower_bound(self, confidence: float = 0.95) -> float:
        """Return the one-sided lower bound of the true drop, in percentage points."""
        return -100 * upper_bound_of_difference(self.gained, self.lost, self.images, confidence)

    @property
    def mcnemar_p(self) -> float:
        """Two-sided p-value of equal accuracy, from the images that only one classifies correctly.

        Source: McNemar, "Note on the sampling error of the difference between correlated
        proportions or percentages", Psychometrika 12 (1947) 153-157; exact binomial form.
        """
        differing = self.lost + self.gained
        tail = sum(math.comb(differing, k) for k in range(min(self.lost, self.gained) + 1))
        return min(1.0, 2 * float(Fraction(tail, 2**differing)))

    def images_to_decide(self, max_drop: float) -> int | None:
        """Estimate how many images a verdict needs if losses and gains stay as frequent as now.

        Returns:
            A number rounded up to two digits; None if more than `MAX_IMAGES` are needed.
        """

        def decides(images: int) -> bool:
            lost, gained = (images / self.images * count for count in (self.lost, self.gained))
            return _verdict(lost, gained, images, max_drop) is not Verdict.INCONCLUSIVE

        images = self.images
        while not decides(images):
            images = math.ceil(1.05 * images)
            if images > MAX_IMAGES:
                return None
        digits = int(10 ** max(len(str(images)) - 2, 0))
        return math.ceil(images / digits) * digits

    def verdict(self, max_drop: float) -> Verdict:
        """Return PASS if the drop is at most `max_drop` points, FAIL if not, at 95 % confidence."""
        return _verdict(self.lost, self.gained, self.images, max_drop)


def interval_verdict(low: float, high: float, limit: float) -> Verdict:
    """Return PASS if the interval is at most `limit`, FAIL if it is above, else INCONCLUSIVE."""
    if high <= limit:
        return Verdict.PASS
    return Verdict.FAIL if low > limit else Verdict.INCONCLUSIVE


def worst_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """Return FAIL if any verdict is FAIL, else INCONCLUSIVE if any is, else PASS."""
    found = set(verdicts)
    return next((v for v in (Verdict.FAIL, Verdict.INCONCLUSIVE) if v in found), Verdict.PASS)


def wilson_interval(correct: int, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided interval of an accuracy in percent, from `correct` of `images`.

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
    """Return the upper confidence bound of p(lost) - p(gained) for paired predictions, up to 1.

    It is the score bound: the largest difference that the score test does not reject. Unlike the
    normal approximation it is valid for small counts, and is above 0 if nothing was lost.

    Source: Tango, "Equivalence test and confidence interval for the difference in proportions
    for the paired-sample design", Statistics in Medicine 17 (1998) 891-908, section 4.
    """
    z = NormalDist().inv_cdf(confidence)

    def score(difference: float) -> float:
        # The p(gained) of maximum likelihood if p(lost) - p(gained) is `difference`.
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


def ratio_interval(
    baseline: FloatArray, contender: FloatArray, *, confidence: float = 0.95, resamples: int = 2000
) -> tuple[float, float, float]:
    """Estimate a speedup, baseline time / contender time, from the times of paired rounds (R,).

    Rounds are resampled, not single times, because a disturbance slows both times of a round.

    Returns:
        The median ratio of a round, and the ends of its percentile bootstrap interval.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3.
    """
    ratios = np.asarray(baseline, dtype=np.float64) / np.asarray(contender, dtype=np.float64)
    medians = _resampled_medians(ratios, resamples, np.random.default_rng(0))
    return float(np.median(ratios)), *_percentiles(medians, confidence)


def unpaired_ratio_interval(
    first: FloatArray, second: FloatArray, *, confidence: float = 0.95, resamples: int = 2000
) -> tuple[float, float, float]:
    """Estimate median of `second` / median of `first` from separate measurements (R,) and (S,).

    Returns:
        The ratio, and the ends of its percentile bootstrap interval over the rounds of each.
    """
    generator = np.random.default_rng(0)
    below, above = (
        _resampled_medians(np.asarray(times, dtype=np.float64), resamples, generator)
        for times in (first, second)
    )
    ratio = float(np.median(second) / np.median(first))
    return ratio, *_percentiles(above / below, confidence)


def median_interval(values: FloatArray, confidence: float) -> tuple[float, float] | None:
    """Return the two-sided interval of the true median, from values (N,) of any distribution.

    Its ends are two order statistics, chosen by the binomial distribution; None if N is too small.

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

    Rounds of one repetition are more alike than rounds of different ones, which run in other
    processes beside other load. So each repetition counts once, with the median ratio of its
    rounds, and the interval is Student's over the logarithms of these ratios.

    Returns:
        The geometric mean over repetitions, and the ends of its 95 % interval; for a single
        repetition the result of `ratio_interval`.

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
    """Return the 97.5 % quantile of Student's t; slightly too large above 4 degrees of freedom."""
    return T_975[min(freedom, len(T_975)) - 1]


def _verdict(lost: float, gained: float, images: int, max_drop: float) -> Verdict:
    most = 100 * upper_bound_of_difference(lost, gained, images, 0.95)
    least = -100 * upper_bound_of_difference(gained, lost, images, 0.95)
    return interval_verdict(least, most, max_drop)


def _resampled_medians(
    values: FloatArray, resamples: int, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    draws = generator.integers(0, len(values), size=(resamples, len(values)))
    return np.asarray(np.median(values[draws], axis=1), dtype=np.float64)


def _percentiles(values: FloatArray, confidence: float) -> tuple[float, float]:
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
