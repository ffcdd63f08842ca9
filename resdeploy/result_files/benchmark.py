"""The result of `resdeploy bench` and its file format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from resdeploy.benchmark_process.roofline import Ceilings
from resdeploy.bundle.manifest import Encoding, ExportWarning
from resdeploy.bundle.operation_counts import WorkTotals
from resdeploy.machine.device import Scope
from resdeploy.result_files.provenance import Environment

SCHEMA = "resdeploy.benchmark/1"
BASELINE = "pytorch-eager"
"""The contender that speed-ups refer to."""
WIDE_INTERVALS = "the intervals of these speed-ups are wider than"
"""The beginning of a notice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """The result of one benchmark."""

    schema: str = SCHEMA
    environment: BenchmarkEnvironment
    work: WorkTotals | None
    """The work of the network for one image; None if the bundle does not record it."""
    ceilings: Ceilings | None
    """The ceilings of this machine; None if they were not measured."""
    notices: tuple[str, ...]
    """Conditions that slowed the benchmark down, or may have done so."""
    results: tuple[Timing, ...]
    warnings: tuple[ExportWarning, ...] = ()
    """Doubts of the export about the bundle."""

    @property
    def baseline_name(self) -> str:
        """Return the name of the contender to which speed-ups refer."""
        return self.environment.baseline.name if self.environment.baseline else "PyTorch eager"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkEnvironment(Environment):
    """The environment of a benchmark, with its settings."""

    mode: str | None = None
    """`stream`, `offline` or `end-to-end`."""
    rounds: int | None = None
    runs: tuple[int, ...] = ()
    """The number of rounds in each run."""
    seconds: float | None = None
    """The time limit for each contender."""
    within: float | None = None
    """The benchmark ends early if (upper - lower bound) / speed-up is at most this for all."""
    time_limit: float | None = None
    """The time limit of the whole benchmark in seconds, without energy."""
    high_priority: bool | None = None
    """True if the system gave every contender the highest priority."""
    baseline: BaselineFacts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineFacts:
    """The contender to which speed-ups refer."""

    weights: str
    """The checkpoint, or `random`."""
    device: str
    """`cpu` or `cuda`."""
    name: str = "PyTorch eager"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The figures of one contender; None means not measured or not comparable."""

    contender: str
    precision: str
    encoding: Encoding
    batch: int
    threads: int
    streams: int = 1
    """The equal parts of the batch that ran at the same time and shared the threads."""
    calls: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    images_per_second: float
    speedup: float | None
    """Baseline time / time: the median over rounds, then the geometric mean over runs."""
    speedup_low: float | None
    """Lower bound of the 95 % confidence interval over runs; `speedup_high` is the upper bound."""
    speedup_high: float | None
    energy: ImageEnergy | None
    round_ms: tuple[float, ...]
    """The median of each round; the same index means the same round for every contender."""
    quantiles_ms: tuple[float, ...]
    """The quantiles of all calls, from 0 % to 100 % in steps of 1 %."""
    stages_ms: Mapping[str, float] | None
    """The median time of each stage of a call, in the end-to-end mode."""
    cold_start_s: float | None
    """The time from the start of a process to its first result; median over runs."""
    peak_rss_bytes: int | None
    peak_gpu_bytes: int | None
    file_bytes: int | None
    """The size of the graph or the checkpoint."""
    limit_share: float | None
    """The roofline's time / the median inference time; 1 means as fast as this machine allows."""
    bound: str | None
    """The resource that sets the roofline's time: `compute` or `memory`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEnergy:
    """The energy that one image needs."""

    source: str
    """The name of the sensor."""
    scope: Scope
    mj_per_image: float
    """Millijoules without the power of the idle machine."""
    mj_low: float
    """Lower bound of the 95 % confidence interval over rounds; `mj_high` is the upper bound."""
    mj_high: float
    total_mj_per_image: float
    """Millijoules including the power of the idle machine."""
    watts: float
    """Mean power under load."""
    idle_watts: float
    rounds: int
    """The number of rounds that the sensor covered completely."""


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """The median time of each layer for one image, with all cores."""

    graph: str
    ms: Mapping[str, float]
    """Milliseconds by node of the FP32 graph, including the nodes fused with it."""
