"""TODO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resdeploy.bench.roofline import Ceilings
from resdeploy.bundle.manifest import Encoding
from resdeploy.documents import jsonable, parse
from resdeploy.machine.device import Scope
from resdeploy.results.provenance import Environment

BASELINE = "pytorch-eager"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkTotals:
    """See `roofline.Work`."""

    macs: int
    weights: int
    activations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkDocument:
    """The same, where what only a run knows is text and numbers."""

    schema: str
    environment: Environment
    work: WorkTotals | None
    ceilings: Ceilings | None
    notices: tuple[str, ...]
    results: tuple[Timing, ...]


def as_document(benchmark: Benchmark) -> BenchmarkDocument:
    """What was just measured, as if it had been written and read."""
    return parse(BenchmarkDocument, jsonable(benchmark))


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """Medians of single runs of one image, with all cores."""

    graph: str
    ms: Mapping[str, float]
    """By the node of the FP32 graph; what fuses with it is in it."""


SCHEMA = "resdeploy.benchmark/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """What `resdeploy bench` measured."""

    schema: str = SCHEMA
    environment: dict[str, Any]
    work: dict[str, int] | None
    """Of one image."""
    ceilings: Ceilings | None
    notices: tuple[str, ...]
    """What made it slower than it could be, or may have."""
    results: tuple[Timing, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What one contender took; None is what could not be measured or compared."""

    contender: str
    precision: str
    encoding: Encoding
    batch: int
    threads: int
    runs: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    images_per_second: float
    speedup: float | None
    """Against PyTorch eager: mean over heats of the median over rounds of the ratio of times."""
    speedup_low: float | None
    """Lower end of the 95 % interval over heats."""
    speedup_high: float | None
    energy: ImageEnergy | None
    round_ms: tuple[float, ...]
    """Median of each round; the same place is the same round in all contenders."""
    quantiles_ms: tuple[float, ...]
    """Of all runs: 0 % to 100 %."""
    stages_ms: Mapping[str, float] | None
    """Medians of the parts of a run, end to end."""
    cold_start_s: float | None
    """From the start of a process to its first answer; median of all heats."""
    peak_rss_bytes: int | None
    peak_gpu_bytes: int | None
    file_bytes: int | None
    limit_share: float | None
    """The roofline's time divided by the median: 1 would be as fast as this machine can."""
    bound: str | None
    """`compute` or `memory`: what sets that limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEnergy:
    """What one image takes."""

    source: str
    scope: Scope
    mj_per_image: float
    """Beyond the power of the idle machine."""
    mj_low: float
    """Lower end of the 95 % interval over rounds."""
    mj_high: float
    total_mj_per_image: float
    """With it."""
    watts: float
    """Mean power while running."""
    idle_watts: float
    rounds: int
    """Rounds that were measured throughout, of `ROUNDS`."""
