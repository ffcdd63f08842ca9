"""The result of `resdeploy score`."""

from __future__ import annotations

from dataclasses import dataclass

from resdeploy.bundle.manifest import ExportWarning
from resdeploy.result_files.provenance import Environment


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringAccuracy:
    """The accuracy on the rows whose true class is known."""

    rows: int
    percent: float
    interval: tuple[float, float]
    """95 % confidence interval (Wilson 1927), in percent."""
    confusion: tuple[tuple[int, int, int], ...]
    """True class, predicted class and number of rows, sorted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringReport:
    """Counts of a scoring; its files hold the predictions."""

    output: str
    rows: int
    """Number of rows, with those of earlier runs that this one completed."""
    failed: int
    """Number of rows that have a reason in place of a prediction."""
    first_failed: str | None
    skipped: int
    """Number of files in folders that are hidden or no pictures."""
    parts: int
    """Number of files with predictions."""
    resumed_parts: int
    """Number of files that earlier runs had completed."""
    seconds: float
    """Time of listing the sources and scoring."""
    rows_per_second: float | None
    """Rows that this run scored, per second, with loading the bundle; None if there were none."""
    engines: dict[str, int]
    """Number of classified rows by graph and backend."""
    bundle_sha256: str
    """SHA-256 of the manifest."""
    labels: tuple[str, ...]
    """Labels of the outputs, if the accuracy is known."""
    accuracy: ScoringAccuracy | None
    """Accuracy, if the sources have true classes."""
    warnings: tuple[ExportWarning, ...]
    """Doubts of the export about the graphs that ran."""
    environment: Environment
    schema: str = "resdeploy.scoring/1"
