"""Decision between candidates: paired top-1 accuracy, and the statistics of the batch norms.

Top-1 accuracy and the log loss decide wherever labels are known; the loss tells small differences,
such as another crop, on far fewer images. Batch norms decide without labels; with labels, they only
decide between candidates of one geometry that are equally accurate, because they measure mean and
standard deviation of the pixels more exactly than accuracy does.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import torch

from resdeploy.export.norm_inputs import LARGEST
from resdeploy.export.preprocessing_search.scoring import BLOCK, CandidateScore
from resdeploy.statistics import (
    BoolArray,
    FloatArray,
    IntArray,
    PairedAccuracy,
    fewest_images,
    pair_predictions,
)

# Bonferroni's correction: a wrong candidate is named with a probability of at most 5 %. The
# dropping of candidates before all images are used takes 1 % of these, for at most 300 candidates
# and 10 looks. Holm's steps would not do: the best candidate is chosen on the same images, so that
# the last of its comparisons needs the same level as the first.
# Source: Dunn, "Multiple comparisons among means", JASA 56 (1961) 52-64.
ALPHA, DROP_ALPHA = 0.04, 0.01 / 3000
# The means of fewer differences are not normally distributed: a few images have large losses.
FEWEST_LOSSES = 256
RESAMPLES = 100  # the standard deviation of a difference is then known within 7 %
# A candidate's divergence must also be this multiple of the best one's, because the images of the
# training were augmented, and differ from these a little. On 1000 images and small networks trained
# on CIFAR-10, the right candidate had 0.0004 to 0.0009 nats, the nearest wrong normalisation or
# order of channels 0.0085 to 0.027, but a crop of 0.95 with bicubic interpolation 0.0009 to 0.0012.
LEAST_DISTANCE_RATIO = 4.0

Divergences = npt.NDArray[np.float64]
"""Divergence on all images, then on each resample: shape (1 + RESAMPLES,)."""


def correct_predictions(score: CandidateScore, labels: IntArray) -> BoolArray:
    """Return an array that is True for the images that the network classifies correctly."""
    return np.asarray(score.predicted == labels[: score.images])


def compare_scores(best: CandidateScore, other: CandidateScore, labels: IntArray) -> PairedAccuracy:
    """Compare two candidates on the images that both were scored on."""
    images = min(best.images, other.images)
    first, second = (correct_predictions(score, labels)[:images] for score in (best, other))
    return pair_predictions(first, second)


def is_worse(paired: PairedAccuracy, alpha: float) -> bool:
    """Return True if the candidate is less accurate by McNemar's exact one-sided test."""
    if paired.lost <= paired.gained:
        return False
    # Hoeffding's bound of the p-value is much faster where it decides.
    score = (paired.lost - paired.gained) ** 2 / (2 * (paired.lost + paired.gained))
    return math.exp(-score) <= alpha or paired.mcnemar_p / 2 <= alpha


def has_higher_loss(best: FloatArray, other: FloatArray, alpha: float) -> bool:
    """Return True if the log loss is higher by a paired one-sided z-test."""
    return len(best) >= FEWEST_LOSSES and loss_score(best, other) > NormalDist().inv_cdf(1 - alpha)


def loss_score(best: FloatArray, other: FloatArray) -> float:
    """Return the mean of the paired differences of the log loss, in standard errors."""
    difference = other - best
    error = float(difference.std()) / math.sqrt(len(difference))
    return float(difference.mean()) / error if error else 0.0


def images_to_separate(
    paired: PairedAccuracy, best: FloatArray, other: FloatArray, alpha: float
) -> int | None:
    """Estimate how many images separate two candidates, if they differ as now.

    The result is None if the other is not worse, or if more than `MAX_IMAGES` are needed.
    """
    lost, gained = paired.lost, paired.gained
    # Both statistics grow with the root of the number of images; the first one is McNemar's.
    score = max((lost - gained) / math.sqrt(max(lost + gained, 1)), loss_score(best, other))
    if score <= 0:
        return None
    factor = (NormalDist().inv_cdf(1 - alpha) / score) ** 2
    images = math.ceil(paired.images * max(factor, 1.0))
    return fewest_images(lambda count: count >= images, paired.images)


def divergences(score: CandidateScore, images: int) -> Divergences | None:
    """Return how far the batch norms' inputs are from their recorded statistics, in nats.

    For each channel, this is the Kullback-Leibler divergence of two normal distributions with the
    measured and the recorded mean and variance; then the mean over the channels, and the median
    over the norms. The resamples draw blocks of the first `images` images with replacement, the
    same blocks for every candidate, so that differences of candidates are paired. The result is
    None without batch norms.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), sections 6 and 8.
    """
    recorded = [block.norms for block in score.blocks if block.norms]
    blocks = recorded[: min(images // BLOCK, len(recorded)) or 1]
    if not blocks:
        return None
    draws = np.random.default_rng(0).multinomial(
        len(blocks), [1 / len(blocks)] * len(blocks), size=RESAMPLES
    )
    weights = torch.from_numpy(np.vstack([np.ones_like(draws[:1]), draws])).double()
    found = []
    for norms in zip(*blocks):
        count = weights @ torch.tensor([norm.count for norm in norms]).double()
        mean, squares = (
            weights @ torch.stack(sums) / count[:, None]
            for sums in ([norm.total for norm in norms], [norm.squares for norm in norms])
        )
        distance, ratio = norms[0].compare(mean, squares)
        nats = (ratio + distance.square() - 1 - ratio.log()) / 2
        found.append(nats.mean(1).nan_to_num(LARGEST, LARGEST))
    return np.asarray(torch.stack(found).median(0).values.numpy(), dtype=np.float64)


def is_farther(best: Divergences, other: Divergences, alpha: float) -> bool:
    """Return True if the batch norms are clearly farther from their statistics with `other`."""
    gap = other - best
    z = NormalDist().inv_cdf(1 - alpha)
    return bool(other[0] >= LEAST_DISTANCE_RATIO * best[0] and gap[0] > z * float(np.std(gap[1:])))
