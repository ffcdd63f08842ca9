"""Comparing two networks that saw the same images, and two programs that ran in turns.

Shape letters: N images, K classes, R rounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

MOST_IMAGES = 10_000_000
FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.integer]


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
    if 100 * upper_bound_of_difference(lost, gained, images, 0.95) <= max_drop:
        return Verdict.PASS
    if -100 * upper_bound_of_difference(gained, lost, images, 0.95) > max_drop:
        return Verdict.FAIL
    return Verdict.INCONCLUSIVE


def compare_accuracy(
    baseline: FloatArray, candidate: FloatArray, labels: IntArray
) -> PairedAccuracy:
    """Pair the answers of two classifiers: logits (N, K), (N, K) and true classes (N,)."""
    first = baseline.argmax(axis=1) == labels
    second = candidate.argmax(axis=1) == labels
    return PairedAccuracy(
        images=len(labels),
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
    generator = np.random.default_rng(0)
    draws = generator.integers(0, len(ratios), size=(resamples, len(ratios)))
    medians = np.median(ratios[draws], axis=1)
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(medians, [tail, 100 - tail])
    return float(np.median(ratios)), float(low), float(high)
