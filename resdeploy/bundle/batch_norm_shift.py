"""The distance of images from those of the training, as the network's batch norms recorded them.

Each batch norm holds the mean and the variance of its input in training. Images that are decoded,
resized and normalised as in training, by the same network, reproduce them.

Source of the statistics: Ioffe and Szegedy 2015, arXiv:1502.03167, section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from resdeploy.tables import factor, plural, two_digits

NO_STATISTICS = (
    "the batch norms have no statistics, so they cannot tell whether the pre-processing is right: "
    "their means are 0 and their variances 1, as in a network that was never trained, or whose "
    "batch norms were folded"
)

# Measured with a ResNet-34 on CIFAR-10 (32 pixels), as ranges over draws of 64 and 256 images. The
# median over the norms separates right from wrong better than their maximum, which a few unusual
# images drive up; the variance at the first norm, behind one convolution, shows mean and std.
#
#                             median shift of the means    variance of the first norm, in octaves
#     images                  64            256            64            256
#     right                   0.03 to 0.14  0.01 to 0.03   0.03 to 0.27  0.02 to 0.10
#     BGR instead of RGB      0.07 to 0.09  0.05 to 0.08   as right
#     upscaled by 1.25        0.11 to 0.47  0.14 to 0.37   as right
#     mean = std = 0.5        0.17 to 0.18  0.17 to 0.18   2.2 to 2.4    2.3 to 2.4
#     std 20 % too small      0.05 to 0.20  0.05 to 0.12   0.48 to 0.77  0.56 to 0.65
#     twice the size          2.6                          as right
#     no pooling in the stem  3.8                          as right
#     0..255, not normalised  266                          12
#
# The limits are above all right ones and shrink with the number of images, as random errors do.
MEAN_LIMIT, MEAN_NOISE = 0.1, 0.4
VARIANCE_LIMIT, VARIANCE_NOISE = 0.4, 1.6


@dataclass(frozen=True, slots=True, kw_only=True)
class NormShift:
    """Distance between the input of one batch norm and the statistics that it recorded."""

    name: str
    mean_shift: float
    """Distance of the means in recorded standard deviations, median over the channels."""
    variance_octaves: float
    """Absolute base-2 logarithm of the ratio of the variances, median over the channels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNormShift:
    """Distance of images from those of the training, over all batch norms of a network."""

    images: int
    mean_shift: float
    """Median of the norms' `mean_shift`."""
    first_variance_octaves: float
    """`variance_octaves` of the first norm, which shows a wrong normalisation of the pixels."""
    norms: tuple[NormShift, ...]
    """All norms in the order of the network."""

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images is {self.images}; at least 1 is needed")

    @property
    def mean_limit(self) -> float:
        """Largest `mean_shift` that is expected of images like those of the training."""
        return MEAN_LIMIT + MEAN_NOISE / math.sqrt(self.images)

    @property
    def variance_limit(self) -> float:
        """Largest `first_variance_octaves` that is expected of such images."""
        return VARIANCE_LIMIT + VARIANCE_NOISE / math.sqrt(self.images)

    @property
    def fits(self) -> bool:
        """True if the images may be like those of the training."""
        return (
            self.mean_shift <= self.mean_limit
            and self.first_variance_octaves <= self.variance_limit
        )

    @property
    def figures(self) -> str:
        """Return the figures with their limits: those above them, or both if none is."""
        both = [
            (self.mean_shift / self.mean_limit,
             f"their means are {two_digits(self.mean_shift)} standard deviations from those in "
             f"training (limit {two_digits(self.mean_limit)})"),
            (self.first_variance_octaves / self.variance_limit,
             "the variance at the first one differs by a factor of "
             f"{variance_factor(self.first_variance_octaves)} "
             f"(limit {variance_factor(self.variance_limit)})"),
        ]  # fmt: skip
        texts = [text for share, text in both if share > 1 or self.fits]
        return f"on {plural(self.images, 'image')}, {', and '.join(texts)}"


def variance_factor(octaves: float) -> str:
    """Return the factor between two variances as text; at most 2**1000, which is a float."""
    ratio = 2 ** min(octaves, 1000.0)
    return factor(ratio) if ratio < 1e6 else f"{ratio:.2e}"


def summarise_norms(images: int, norms: Sequence[NormShift]) -> BatchNormShift:
    """Return the summary of norms, at least one, measured on `images` images."""
    return BatchNormShift(
        images=images,
        mean_shift=median(norm.mean_shift for norm in norms),
        first_variance_octaves=norms[0].variance_octaves,
        norms=tuple(norms),
    )


def shift_sentence(shift: BatchNormShift) -> str:
    """Return one sentence with the figures and their meaning."""
    meaning = (
        "as expected if images and pre-processing are like those of the training"
        if shift.fits
        else "that is above the limit, see the warning"
    )
    return f"batch norms: {shift.figures}; {meaning}"
