"""Predicted classes that change between two networks on the same images, and what this proves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from resdeploy.statistics import (
    FloatArray,
    IntArray,
    pair_predictions,
    upper_bound_of_difference,
)

CONFIDENCE = 0.95  # one-sided: of 20 statements, 19 are true
# Tango's bound is approximate. At 95 %, it covers the true drop in 94.5 % of all draws at worst,
# and with 0.8 of the permitted errors in 95.5 %: exact sums for 45 pairs of rates up to 4 %, none
# with more gains than losses, and 128 to 1,000 images.
SCORE_ERRORS = 0.8
# The noise of an INT8 graph changes the predicted class to one of FP32's most likely ones.
RANKS = 32
NOISES = 256  # of as many images; more make the estimate of expected changes slower, not better
AMPLIFICATION = 2  # of the noise, for an estimate from twice as many small margins


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedPredictions:
    """The numbers of images whose predicted class a candidate changes against a baseline."""

    images: int
    changed: int
    lost: int
    """Images that only the baseline classifies correctly; all changed ones without true classes."""
    gained: int
    """Images that only the candidate classifies correctly."""
    labelled: bool
    """True if the true classes are known."""

    @property
    def agreement(self) -> float:
        """Images with the same predicted class, in percent."""
        return 100 * (1 - self.changed / self.images)

    @property
    def drop(self) -> float:
        """Drop in accuracy, in percentage points; an upper bound of it without true classes."""
        return 100 * (self.lost - self.gained) / self.images

    def lowest_agreement(self, confidence: float = CONFIDENCE) -> float:
        """Return the one-sided lower confidence bound of the agreement, in percent."""
        return 100 * (1 - highest_rate(self.changed, self.images, confidence))

    def highest_agreement(self, confidence: float = CONFIDENCE) -> float:
        """Return the one-sided upper confidence bound of the agreement, in percent."""
        return agreement_bound(self.changed, self.images, confidence)

    def highest_drop(self, confidence: float = CONFIDENCE) -> float:
        """Return the one-sided upper confidence bound of the drop, in percentage points."""
        if not self.labelled:
            return 100 * highest_rate(self.lost, self.images, confidence)
        if not self.gained:  # then the exact bound is valid, too
            return 100 * highest_rate(self.lost, self.images, confidence)
        level = 1 - SCORE_ERRORS * (1 - confidence)
        return 100 * upper_bound_of_difference(self.lost, self.gained, self.images, level)

    def lowest_drop(self, confidence: float = CONFIDENCE) -> float:
        """Return the one-sided lower confidence bound of the drop, in percentage points.

        Without true classes it is minus the highest share of changed classes, because each change
        may be a gain.
        """
        if not self.labelled:
            return -100 * highest_rate(self.changed, self.images, confidence)
        return -100 * upper_bound_of_difference(self.gained, self.lost, self.images, confidence)


def count_changes(
    baseline: FloatArray, candidate: FloatArray, classes: IntArray | None
) -> ChangedPredictions:
    """Compare predictions, from two networks' logits (N, K) and, if known, true classes (N,)."""
    changed = int((baseline.argmax(axis=1) != candidate.argmax(axis=1)).sum())
    lost, gained = changed, 0
    if classes is not None:
        paired = pair_predictions(
            baseline.argmax(axis=1) == classes, candidate.argmax(axis=1) == classes
        )
        lost, gained = paired.lost, paired.gained
    return ChangedPredictions(
        images=len(baseline), changed=changed, lost=lost, gained=gained,
        labelled=classes is not None,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ExpectedChanges:
    """Estimate of what a candidate changes on other images of the same kind, with confidence."""

    agreement: float
    """One-sided lower bound of the images with the same predicted class, in percent."""
    drop: float
    """One-sided upper bound of the drop in accuracy, in percentage points; all changes without true
    classes."""


def expect_changes(
    baseline: FloatArray,
    candidate: FloatArray,
    classes: IntArray | None,
    further: FloatArray | None = None,
) -> ExpectedChanges:
    """Estimate changes from the noise and the margins, of which few images tell more than a count.

    The noise of each image is added to the baseline's logits of every image, which gives a
    prediction for each pair, and for each image the share of noises that change its class. Their
    mean is the estimate, and their standard error gives its bound. The classes of both images are
    paired by their rank in the baseline's logits, because the noise is largest where the logits
    are. Images with equal logits of both networks have no noise to add: the search does not compute
    them.

    A single image whose best two logits are nearly equal would count for half of a changed class.
    Its weight falls with further images of which only the baseline's logits are known, and because
    the noise is amplified and the changes are divided by the same factor: where small margins are
    equally frequent, changes are proportional to the noise.

    Args:
        baseline: FP32's logits (N, K).
        candidate: Logits (N, K) of a graph with noise.
        classes: True classes (N,), if they are known; the drop is estimated on these images alone.
        further: FP32's logits (M, K) of more images, which may be those that calibrated.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 9, on residuals
    that are added to other observations; here with all pairs instead of random ones.
    """
    count = len(baseline)
    every = baseline if further is None else np.concatenate([baseline, further])
    order = np.argsort(-every, axis=1, kind="stable")[:, :RANKS]
    ranked = np.take_along_axis(every, order, axis=1)
    noise = np.take_along_axis(candidate, order[:count], axis=1) - ranked[:count]
    noise = noise[np.any(candidate != baseline, axis=1)][:NOISES] * AMPLIFICATION
    if not len(noise):
        return ExpectedChanges(100.0, 0.0)
    chosen = np.stack([(ranked + one).argmax(axis=1) for one in noise])  # ranks, (noises, N + M)
    changed = _upper_bound((chosen != 0).mean(axis=0))
    if classes is None:
        return ExpectedChanges(100 - changed, changed)
    right = order[:count] == classes[:, np.newaxis]
    after = right[np.arange(count), chosen[:, :count]].mean(axis=0)
    return ExpectedChanges(100 - changed, _upper_bound(right[:, 0] - after))


def _upper_bound(shares: FloatArray) -> float:
    """Return the upper bound, in percent, of the mean of what amplified noise changes per image."""
    error = shares.std() / math.sqrt(len(shares))
    return 100 * float(shares.mean() + NormalDist().inv_cdf(CONFIDENCE) * error) / AMPLIFICATION


def highest_rate(events: int, images: int, confidence: float) -> float:
    """Return the one-sided upper confidence bound of the probability of an event, 0 to 1.

    The bound is exact: it covers the probability at least as often as stated for every number of
    images. Wilson's interval is only approximate, and too narrow if nearly all images agree, which
    is the case here: with 0 events of n it states 2.7 / n, and 3.0 / n is needed.

    Source: Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case
    of the binomial", Biometrika 26 (1934) 404-413.
    """
    if events == images:
        return 1.0
    counts = np.arange(events + 1)
    steps = np.log((images - counts[:-1]) / counts[1:])
    log_ways = np.concatenate([[0.0], np.cumsum(steps)])  # of choosing 0, 1, .. events images
    low, high = events / images, 1.0
    for _ in range(60):  # bisection: the more probable the event, the less so few of them
        middle = (low + high) / 2
        terms = log_ways + counts * math.log(middle) + (images - counts) * math.log1p(-middle)
        at_most = float(np.exp(terms).sum())  # the probability of so few events
        low, high = (middle, high) if at_most > 1 - confidence else (low, middle)
    return high


def agreement_bound(changed: int, images: int, confidence: float = CONFIDENCE) -> float:
    """Return the one-sided upper confidence bound of the agreement, in percent."""
    return 100 * highest_rate(images - changed, images, confidence)


def images_needed(limit: float, confidence: float = CONFIDENCE) -> int | None:
    """Return how many images show an agreement of `limit` percent if no predicted class changes.

    The result is None for 100 %, which no number of images can show.
    """
    if limit >= 100:
        return None
    if limit <= 0:
        return 1
    # All n images agree with probability limit^n at the limit, and less often below it.
    return max(1, math.ceil(math.log(1 - confidence) / math.log(limit / 100) - 1e-9))
