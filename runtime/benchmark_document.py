"""A benchmark as it is read from a document; `bench.Benchmark` is what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from resdeploy.console import jsonable
from resdeploy.documents import parse
from resdeploy.roofline import Ceilings
from resdeploy.runtime.bench import Benchmark
from resdeploy.runtime.environment import Environment
from resdeploy.runtime.timing import Timing

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
