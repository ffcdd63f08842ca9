"""The result of `resdeploy preprocess`."""

from __future__ import annotations

from dataclasses import dataclass

from resdeploy.images.preprocessing import Preprocessing
from resdeploy.statistics import Verdict

SCHEMA = "resdeploy.preprocessing-search/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateResult:
    """The result of one candidate; accuracies are in percent, and None without labels.

    Intervals are two-sided. That of the accuracy has 95 % confidence, those of all differences
    together have 92 %: each one-sided bound is corrected for the number of candidates.
    """

    name: str
    preprocessing: Preprocessing
    images: int
    """Number of images that the candidate was scored on; fewer if it was clearly worse."""
    top1: float | None = None
    top1_interval: tuple[float, float] | None = None
    difference: float | None = None
    """Top-1 accuracy minus that of the best candidate on the same images, in percentage points;
    None for the best candidate."""
    difference_interval: tuple[float, float] | None = None
    divergence: float | None
    """Divergence of the batch norms' inputs from their recorded statistics, in nats; None if no
    batch norm has statistics."""
    excluded_by: str | None
    """Evidence that the best candidate is better: `top-1` or `batch norms`; None if there is none,
    and for the best candidate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessingSearch:
    """The result of a search for the pre-processing of a network."""

    verdict: Verdict
    """PASS if one candidate is left, otherwise INCONCLUSIVE."""
    preprocessing: Preprocessing | None
    """The pre-processing that was found; None if the search is undecided."""
    same_pixels: tuple[str, ...]
    """Names of candidates whose geometry gives the same pixels as the best one's on these images,
    so that they cannot be told apart, and need not be."""
    candidates: tuple[CandidateResult, ...]
    """All candidates, beginning with the best, then the others that are left; one of each group
    with the same pixels."""
    labelled: bool
    images: int
    seconds: float
    """Duration of the search."""
    same_predictions: int
    """Number of images for which all candidates that are left predict the same class."""
    random_crops: bool
    """True if the batch norms fit random crops better than any candidate: the crop is not known
    from the training then, and no candidate was excluded for its crop alone."""
    images_to_decide: int | None
    """Estimated number of labelled images that would decide; None if decided or unknown."""
    schema: str = SCHEMA

    @property
    def left(self) -> tuple[CandidateResult, ...]:
        """Return the candidates that are left, beginning with the best."""
        others = [other for other in self.candidates[1:] if other.excluded_by is None]
        return (self.candidates[0], *others)
