"""Decision between candidates: paired top-1 accuracy, and the statistics of the batch norms.

Top-1 accuracy decides wherever labels are known, except between candidates that differ only in
their geometry (size, crop, interpolation) and by a few points: a network can be more accurate with
another geometry than that of its training. There, and without labels, the batch norms decide. They
measure the pixels more exactly than accuracy does.
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
    IntArray,
    PairedAccuracy,
    fewest_images,
    pair_predictions,
    upper_bound_of_difference,
)

# Bonferroni's correction: a wrong candidate is named with a probability of at most 5 %. The
# dropping of candidates before all images are used takes 1 % of these, for at most 300 candidates
# and 10 looks. Holm's steps would not do: the best candidate is chosen on the same images, so that
# the last of its comparisons needs the same level as the first.
# Source: Dunn, "Multiple comparisons among means", JASA 56 (1961) 52-64.
ALPHA, DROP_ALPHA = 0.04, 0.01 / 3000
RESAMPLES = 100  # the standard deviation of a difference is then known within 7 %
# A candidate's divergence must also be this multiple of the best one's, because the images of the
# training were augmented, and differ from these a little. On 1,024 images and ten small networks
# trained on CIFAR-10, the right candidate had 0.0003 to 0.0013 nats, and the nearest wrong
# normalisation 15 times as much. Other crops and interpolations had 1.3 to 10 times as much; one
# had as little. The ratio was chosen on these networks; networks trained with random resized crops,
# whose recorded statistics are those of enlarged pictures, were not among them.
LEAST_RATIO = 1.5
# Fewer blocks than this tell the bootstrap little about the spread, so the ratio must be larger.
ENOUGH_BLOCKS, LEAST_RATIO_OF_FEW = 8, 4.0
# A network can be more accurate with another size or crop than in training, because the objects
# look larger or more of them is seen: by up to 4 points on these networks. Source: Touvron et al.,
# "Fixing the train-test resolution discrepancy", 2019, arXiv:1906.06423.
GEOMETRY_POINTS = 5.0

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


def is_worse(paired: PairedAccuracy, alpha: float, points: float = 0.0) -> bool:
    """Return True if the candidate is less accurate by McNemar's exact one-sided test.

    With `points`, the lower bound of the drop must also be larger than these percentage points.
    """
    if paired.lost <= paired.gained or paired.drop <= points:
        return False
    if points:
        gain = upper_bound_of_difference(paired.gained, paired.lost, paired.images, 1 - alpha)
        return -100 * gain > points
    # Hoeffding's bound of the p-value is much faster where it decides.
    score = (paired.lost - paired.gained) ** 2 / (2 * (paired.lost + paired.gained))
    return math.exp(-score) <= alpha or paired.mcnemar_p / 2 <= alpha


def images_to_separate(paired: PairedAccuracy, alpha: float) -> int | None:
    """Estimate how many images separate two candidates, if they differ as often as now.

    The result is None if they are equally accurate, or if more than `MAX_IMAGES` are needed.
    """
    if paired.lost <= paired.gained:
        return None
    # McNemar's statistic (lost - gained) / sqrt(lost + gained) grows with the root of the images.
    z = NormalDist().inv_cdf(1 - alpha)
    factor = z**2 * (paired.lost + paired.gained) / (paired.lost - paired.gained) ** 2
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
    recorded = [norms for _, _, norms in score.blocks if norms]
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


def is_farther(best: Divergences, other: Divergences, alpha: float, images: int) -> bool:
    """Return True if the batch norms are clearly farther from their statistics with `other`."""
    gap = other - best
    z = NormalDist().inv_cdf(1 - alpha)
    ratio = LEAST_RATIO if images >= ENOUGH_BLOCKS * BLOCK else LEAST_RATIO_OF_FEW
    return bool(other[0] >= ratio * best[0] and gap[0] > z * float(np.std(gap[1:])))
