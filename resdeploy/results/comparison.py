"""The result of `resdeploy compare` and its file format."""

from __future__ import annotations

from dataclasses import dataclass

from resdeploy.bundle.manifest import Encoding
from resdeploy.results.provenance import Environment
from resdeploy.statistics import Verdict

SCHEMA = "resdeploy.comparison/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The result of a comparison of two bundles or two benchmarks."""

    verdict: Verdict
    first: str
    second: str
    max_drop: float
    """The largest accuracy drop that passes, in percentage points."""
    max_slowdown: float
    """The largest slowdown that passes, in percent."""
    accuracy: tuple[AccuracyChange, ...]
    latency: tuple[LatencyChange, ...]
    layers: tuple[LayerChange, ...]
    missing: tuple[str, ...]
    """Artifacts or contenders that only the first one has."""
    added: tuple[str, ...]
    """Artifacts or contenders that only the second one has."""
    notices: tuple[str, ...]
    """Reasons why the times cannot be compared."""
    environment: Environment
    schema: str = SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyChange:
    """The change of one artifact; accuracies in percent, drops in percentage points."""

    artifact: str
    backend: str
    images: int
    truth: str
    """The reference classes: `labels`, or `pytorch` for its classes of the golden images."""
    first: float
    """Top-1 accuracy of the first bundle."""
    second: float
    """Top-1 accuracy of the second bundle."""
    lost: int
    """The number of images that only the first bundle classifies correctly."""
    gained: int
    """The number of images that only the second bundle classifies correctly."""
    drop: float
    drop_low: float
    """One-sided lower bound, 95 %."""
    drop_high: float
    """One-sided upper bound, 95 %."""
    different: int
    """The number of images whose logits differ in any bit; 0 makes the drop exactly 0."""
    images_to_decide: int | None
    """An estimate of the images that an inconclusive verdict needs; None if none would do."""
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyChange:
    """The change of one contender; slowdowns in percent of the first one's time."""

    contender: str
    graph: str
    batch: int
    threads: int
    first_ms: float
    """Median time of the first one."""
    second_ms: float
    """Median time of the second one."""
    slowdown: float
    slowdown_low: float
    """Lower bound of the two-sided interval at `confidence`."""
    slowdown_high: float
    """Upper bound of the two-sided interval at `confidence`."""
    confidence: float
    """The confidence of the interval, from 0 to 1."""
    samples: int
    """The number of starts, or of rounds in the shorter benchmark."""
    relative_to: str | None
    """The contender whose times both are divided by; None for absolute times."""
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerChange:
    """The layers of one INT8 graph whose precision differs between the bundles."""

    encoding: Encoding
    calibrators: tuple[str, str]
    """The calibrators of the first and the second bundle."""
    to_float: tuple[str, ...]
    """The layers that only the second bundle keeps in float."""
    to_int8: tuple[str, ...]
    """The layers that only the first bundle keeps in float."""
