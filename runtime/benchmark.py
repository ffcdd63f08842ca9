"""What the JSON document of a benchmark holds."""

from __future__ import annotations

from dataclasses import dataclass

from resdeploy.bundle import Encoding, graph_name
from resdeploy.runtime.energy.per_image import ImageEnergy
from resdeploy.runtime.environment import Environment

SCHEMA = "resdeploy.benchmark/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one image takes."""

    macs: int
    """Multiply-accumulates; each is two operations."""
    weights: int
    """Numbers that are read once a batch."""
    activations: int
    """Numbers that every image reads or writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What the machine can do at most, measured in the same run."""

    operations_per_second: dict[str, float]
    """By the arithmetic of a large matrix product."""
    bytes_per_second: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What one contender took."""

    contender: str
    precision: str
    """Of the convolutions: `fp32`, `fp16`, `bf16`, `int8`."""
    encoding: Encoding
    batch: int
    threads: int
    runs: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    images_per_second: float
    speedup: float | None
    speedup_low: float | None
    speedup_high: float | None
    energy: ImageEnergy | None = None
    round_ms: tuple[float, ...] = ()
    """Median of each round; rounds of all contenders were interleaved."""
    quantiles_ms: tuple[float, ...] = ()
    """From the fastest run to the slowest, in steps of 1 %: 101 numbers."""
    stages_ms: dict[str, float] | None = None
    cold_start_s: float | None = None
    peak_rss_bytes: int | None = None
    peak_gpu_bytes: int | None = None
    file_bytes: int | None = None
    limit_share: float | None = None
    bound: str | None = None

    @property
    def graph(self) -> str:
        """The artifact's name, or the arithmetic of what has none."""
        return graph_name(self.precision, self.encoding)

    @property
    def name(self) -> str:
        """Which contender, with what."""
        return f"{self.contender}, {self.graph}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One document."""

    schema: str
    environment: Environment
    results: tuple[Timing, ...]
    work: Work | None = None
    ceilings: Ceilings | None = None
    notices: tuple[str, ...] = ()
