"""TODO."""

from __future__ import annotations

from dataclasses import dataclass

from resdeploy.bundle.manifest import Encoding
from resdeploy.results.provenance import Environment
from resdeploy.statistics import Verdict

SCHEMA = "resdeploy.comparison/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerChange:
    """Layers of one INT8 graph whose precision is another one in the second bundle."""

    encoding: Encoding
    calibrators: tuple[str, str]
    to_float: tuple[str, ...]
    to_int8: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What `resdeploy compare` found."""

    verdict: Verdict
    first: str
    second: str
    max_drop: float
    max_slowdown: float
    accuracy: tuple[AccuracyChange, ...]
    latency: tuple[LatencyChange, ...]
    layers: tuple[LayerChange, ...]
    missing: tuple[str, ...]
    """What only the first has."""
    added: tuple[str, ...]
    notices: tuple[str, ...]
    environment: Environment
    schema: str = SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyChange:
    """One artifact of both bundles; accuracies in percent, drops in points."""

    artifact: str
    backend: str
    images: int
    truth: str
    """`labels`, or `pytorch`: what PyTorch took the first bundle's golden images for."""
    first: float
    second: float
    lost: int
    """Images that only the first has right."""
    gained: int
    drop: float
    drop_low: float
    """One-sided lower bound, 95 %."""
    drop_high: float
    """One-sided upper bound, 95 %."""
    different: int
    """Images whose logits differ in any bit; where none does, nothing is left to chance."""
    images_to_decide: int | None
    """Where the verdict is inconclusive: about how many would do, if any number."""
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyChange:
    """One contender of both; slowdowns in percent of the first one's time."""

    contender: str
    graph: str
    batch: int
    threads: int
    first_ms: float
    """Median."""
    second_ms: float
    slowdown: float
    slowdown_low: float
    slowdown_high: float
    confidence: float
    """Of that interval, two-sided."""
    samples: int
    """Starts of both, or rounds of the benchmark with fewer."""
    relative_to: str | None
    """The contender of the same run that the times were divided by, if any."""
    verdict: Verdict
