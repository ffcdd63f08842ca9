"""TODO."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from resdeploy.bundle.manifest import Encoding, Precision
from resdeploy.results.provenance import Environment
from resdeploy.statistics import Verdict

SCHEMA = "resdeploy.verification/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactResult:
    """One artifact on one backend; the accuracies are None without labelled images."""

    backend: str
    precision: Precision
    encoding: Encoding
    verdict: Verdict
    top1: float | None
    """In percent."""
    baseline_top1: float | None
    """Of the bundle's FP32 graph on the same images, in percent."""
    drop: float | None
    """In percentage points."""
    drop_upper95: float | None
    """One-sided upper 95 % bound of the true drop, in percentage points."""
    drop_lower95: float | None
    """The lower one."""
    mcnemar_p: float | None
    """That both are equally good, from the answers that differ alone; two-sided, exact."""
    images_to_decide: int | None
    """Where the verdict is inconclusive: about how many images would decide, if any number."""
    agreement: float
    """Images with the class that FP32 gives, in percent: the bundle's FP32 graph, or PyTorch for
    that graph itself and where there are golden images only."""
    sqnr_db: float
    """Median over the same images, against the same logits."""
    rule: Rule
    """What the golden check asked for."""
    different: int
    """Golden images with other logits than at the export, where they must be the same; else 0."""
    confusion: tuple[tuple[int, int, int], ...] = ()
    """With labelled images: class shown, class that it was taken for, how many; those above 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What `resdeploy verify` found."""

    verdict: Verdict
    images: int
    unreadable: int
    used_before: int
    """Images that chose the ranges or layers of the INT8 graphs, which flatters those."""
    max_drop: float | None
    """The drop that was allowed, in percentage points; None without labelled images."""
    results: tuple[ArtifactResult, ...]
    labels: tuple[str, ...]
    environment: Environment
    """What was verified, by what, and where."""
    schema: str = SCHEMA


class Rule(str, Enum):
    """What a golden check asks for."""

    BIT_EXACT = "bit-exact"
    """The very logits of the export: sums of integers have no order, and all CPUs round alike."""
    CLOSE = "sqnr"
    """Logits as near to PyTorch's as this artifact's can be."""
