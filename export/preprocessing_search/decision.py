"""Decision between candidates: paired top-1 accuracy, and the statistics of the batch norms.

Top-1 accuracy decides wherever labels are known, except between candidates that differ only in
their geometry (size, crop, interpolation) and by a few points: a network can be more accurate with
another geometry than that of its training. There, and without labels, the batch norms decide. They
measure the pixels more exactly than accuracy does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from resdeploy.export.norm_inputs import LARGEST, NormInput
from resdeploy.export.preprocessing_search.scoring import CandidateScore
from resdeploy.statistics import (
    BoolArray,
    IntArray,
    PairedAccuracy,
    fewest_images,
    pair_predictions,
    upper_bound_of_difference,
)

# Bonferroni's correction: top-1 excludes a candidate wrongly with a probability of at most 5 %. The
# dropping of candidates before all images are used takes 1 % of these, for at most 300 candidates
# and 10 looks. Holm's steps would not do: the best candidate is chosen on the same images, so that
# the last of its comparisons needs the same level as the first.
# Source: Dunn, "Multiple comparisons among means", JASA 56 (1961) 52-64.
ALPHA, DROP_ALPHA = 0.04, 0.01 / 3000
BEYOND_ALPHA = 0.01  # a lower level trusts positions that fit neither: it named a wrong crop
# Batch norms record at least 19 batches (momentum 0.1: 1.9 / 0.1) of 32 images. More than twice
# that noise is not that of images: the weights changed meanwhile.
RECORDED_BLOCKS, SURPLUS = 19, 2.0
# Fewer blocks show their spread badly. Then only a divergence of this many times counts: on 64
# images, chance adds about 0.01 nats to both candidates, and the same to both.
ENOUGH_BLOCKS, LEAST_RATIO_OF_FEW = 16, 4.0
# A network can be more accurate with another size or crop than in training, because the objects
# look larger or more of them is seen: by up to 4 points on these networks. Source: Touvron et al.,
# "Fixing the train-test resolution discrepancy", 2019, arXiv:1906.06423.
GEOMETRY_POINTS = 5.0
# In nats: 0.001 to 0.01 is usual for the right candidate, 0.3 and more for a wrong normalisation.
LARGEST_DIVERGENCE = 0.1
# Smallest parts of the area: torchvision's, that of `train`, and weak crops. Those between fit one.
CROPPED_AREAS = (0.08, 0.3, 0.7)
# Times the divergence of the nearest candidate: 0.59, 0.74 and 0.95 on networks with random crops,
# and 1.03 to 1.46 on four others. If the weights still changed, both are mostly noise.
CROP_MARGIN = 1.1


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """The position of the batch norms' inputs; their recorded statistics are at 0.

    Coordinates are each channel's mean in recorded deviations, and the logarithm of its variance
    by the recorded one, by the root of 2. The square of the length is twice the Kullback-Leibler
    divergence of normal distributions, if small, with the same weight for every batch norm.
    """

    centre: Tensor
    """Coordinates on all images: shape (C,)."""
    spread: Tensor
    """The part that each block of images adds to the centre: shape (blocks, C)."""
    groups: Tensor
    """Number of each coordinate's group: twice that of the norm, and 1 more for variances."""


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


def batch_norm_divergence(score: CandidateScore, blocks: int) -> float:
    """Return how far the batch norms' inputs are from their recorded statistics, in nats.

    For each channel, this is the Kullback-Leibler divergence of two normal distributions with the
    measured and the recorded mean and variance; then the mean over the channels, and the median
    over the norms. The result is infinite without batch norms.
    """
    found = []
    for norms in zip(*_recorded(score)[:blocks]):
        distance, ratio = norms[0].compare(*_sums(norms))
        nats = (ratio + distance.square() - 1 - ratio.log()) / 2
        found.append(float(nats.mean().nan_to_num(LARGEST, LARGEST)))
    return sorted(found)[(len(found) - 1) // 2] if found else math.inf


def common_blocks(one: CandidateScore, other: CandidateScore) -> int:
    """Return the number of blocks of images that both candidates were scored on."""
    return min(len(one.blocks), len(other.blocks))


def measure_moments(score: CandidateScore) -> Moments:
    """Return the moments of all batch norms on the blocks of images that they were trained on."""
    centres, spreads = list[Tensor](), list[Tensor]()
    for norms in zip(*_recorded(score)):
        means = torch.stack([norm.total / norm.count for norm in norms])
        second = torch.stack([norm.squares / norm.count for norm in norms])
        pixels = torch.tensor([norm.pixels for norm in norms]).double()[:, None]
        # Within a block and unbiased, as PyTorch records the variance within a batch.
        variances = (second - means.square()).clamp(min=0) * pixels / (pixels - 1) + norms[0].eps
        mean, variance = means.mean(0), variances.mean(0)
        deviation = norms[0].recorded_variance.sqrt()
        centre = (mean - norms[0].recorded_mean) / deviation
        logarithm = (variance / deviation.square()).log() / 2**0.5
        change = (variances / variance - 1) / 2**0.5  # of the logarithm, to first order
        scale = len(mean) ** 0.5
        centres.append(torch.cat([centre, logarithm]) / scale)
        spreads.append(torch.cat([(means - mean) / deviation, change], 1) / scale)
    counts = torch.tensor([len(centre) // 2 for centre in centres]).repeat_interleave(2)
    groups = torch.arange(len(counts)).repeat_interleave(counts)
    return Moments(torch.cat(centres).nan_to_num(), torch.cat(spreads, 1).nan_to_num(), groups)


def locate(near: Moments, far: Moments, ignored: Tensor) -> tuple[float, float]:
    """Return where the recorded statistics are between two candidates, and the standard deviation.

    0 is where the inputs are with `far`, 1 where they are with `near`. The estimate is that of
    generalised least squares. Ways in which images differ among themselves, such as their contrast,
    count little; those of `ignored` (N, C), the effects of augmentations, do not count at all.

    The noise has two parts. That of the images has the covariance of a block, times how far the
    recorded statistics are from `near` in all other directions, relative to a block. So the batches
    of the training need not be known. What is left of the distance is noise of the coordinates,
    with a variance for each group: the weights changed while the statistics were recorded.

    The deviation has two parts, too: that of this noise, in one half of the blocks from the weights
    that fit the other half; and that of leaving out one norm, because faults of this model differ
    between the norms.

    Sources: Friedman, "Regularized discriminant analysis", JASA 84 (1989) 165-175, for the
    covariance that is shrunk; Efron and Stein, "The jackknife estimate of variance", Annals of
    Statistics 9 (1981) 586-596.
    """
    step, spread = near.centre - far.centre, (near.spread + far.spread) / 2
    spread = spread - spread.mean(0)
    least = 1 / len(spread)
    most = SURPLUS * (least + 1 / RECORDED_BLOCKS)
    share = min(max(_distance(near.centre, spread, torch.cat([ignored, step[None]])), least), most)
    images = _group_means(share * spread.square().sum(0) / (len(spread) - 1), near.groups)
    own = torch.maximum(_group_means(near.centre.square(), near.groups) - images, images)

    def weights(rows: Tensor) -> Tensor:
        known = torch.cat([rows * math.sqrt(share / (len(rows) - 1)), _strong(ignored, own.max())])
        direction = _solve(known, own, step[None])[0]
        return direction.div(direction @ step)

    halves = (spread[::2], spread[1::2]), (spread[1::2], spread[::2])
    fits = [(weights(fitted), seen) for fitted, seen in halves]
    variances = [share * (seen @ w).var() + (w.square() * own).sum() for w, seen in fits]
    w = weights(spread)
    sums = torch.zeros((2, int(near.groups.max()) // 2 + 1), dtype=torch.float64)
    parts, shares = sums.index_add(1, near.groups // 2, torch.stack([-far.centre * w, step * w]))
    without = ((parts.sum() - parts) / (1 - shares))[shares.abs() > 1e-9]
    jackknife = without.var(correction=0) * (len(without) - 1) if len(without) > 1 else math.inf
    return float(parts.sum()), math.sqrt(float(sum(variances) / 2 + jackknife))


def is_excluded(position: float, deviation: float, alpha: float) -> bool:
    """Return True if the recorded statistics are at the near candidate, and not at the far one.

    They are not there if they are closer to the far one, and not if they are beyond the near one by
    more than half of the distance: both are wrong then, or an augmentation is unknown.
    """
    certain, past = (NormalDist().inv_cdf(1 - a) * deviation for a in (alpha, BEYOND_ALPHA))
    beyond = position > 1.5 and position - 1 > past
    return position > max(0.5, certain) and not beyond


def _distance(centre: Tensor, spread: Tensor, ignored: Tensor) -> float:
    """Return the square of the length of `centre`, whitened, relative to that of a block."""
    result = 0.0
    for fitted, seen in ((spread[::2], spread[1::2]), (spread[1::2], spread[::2])):
        rows = torch.cat([centre[None], seen - seen.mean(0)])
        fitted = (fitted - fitted.mean(0)) / math.sqrt(len(fitted) - 1)
        mean = fitted.square().sum() / fitted.shape[1]
        known = torch.cat([fitted, _strong(ignored, mean)])
        lengths = (rows * _solve(known, mean.expand(len(centre)), rows)).sum(1)
        result += float(lengths[0] / lengths[1:].sum()) * (len(seen) - 1) / 2
    return result


def _strong(ignored: Tensor, variance: Tensor) -> Tensor:
    """Return directions with so much noise that they do not count."""
    lengths = ignored.norm(dim=1, keepdim=True).clamp(min=1e-9)
    result: Tensor = ignored / lengths * 1e4 * variance.sqrt()
    return result


def _solve(known: Tensor, own: Tensor, rows: Tensor) -> Tensor:
    """Multiply rows by the inverse of a covariance, that of `known` rows and a diagonal."""
    # Woodbury's identity: there are fewer blocks than channels.
    scaled = known / own
    inner = scaled @ known.T + torch.eye(len(known), dtype=torch.float64)
    result: Tensor = (rows - torch.linalg.solve(inner, scaled @ rows.T).T @ known) / own
    return result


def _group_means(values: Tensor, groups: Tensor) -> Tensor:
    """Return the mean over the group of each coordinate."""
    sums = torch.zeros(int(groups.max()) + 1, dtype=torch.float64).index_add(0, groups, values)
    means: Tensor = (sums / groups.bincount().clamp(min=1))[groups]
    return means


def _recorded(score: CandidateScore) -> list[Sequence[NormInput]]:
    return [norms for _, _, norms in score.blocks if norms]


def _sums(norms: Sequence[NormInput]) -> tuple[Tensor, Tensor]:
    """Return the means of a norm's inputs and of their squares over several blocks."""
    count = sum(norm.count for norm in norms)
    total = torch.stack([norm.total for norm in norms]).sum(0)
    return total / count, torch.stack([norm.squares for norm in norms]).sum(0) / count
