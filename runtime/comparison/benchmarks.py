"""The comparison of two benchmarks that were measured at different times.

The whole machine may have been slower in one of them. If both timed the same version of PyTorch,
the times of a contender are therefore divided by PyTorch's times in the same rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from resdeploy.bundle.manifest import graph_name
from resdeploy.errors import DocumentError
from resdeploy.images.preprocessing import size_text
from resdeploy.result_files.benchmark import BASELINE, Benchmark, Timing
from resdeploy.result_files.comparison import LatencyChange
from resdeploy.runtime.comparison.latency import percent_more, samples_to_decide
from resdeploy.statistics import interval_verdict, unpaired_ratio_interval
from resdeploy.tables import plural

CONFIDENCE = 0.95
Key = tuple[str, str, int, int]
"""Contender, graph, batch, threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkChanges:
    """The changes between two benchmarks."""

    lines: tuple[LatencyChange, ...]
    missing: tuple[str, ...]
    """Contenders that only the first benchmark has."""
    added: tuple[str, ...]
    """Contenders that only the second benchmark has."""
    notices: tuple[str, ...]
    """Reasons why the times cannot be compared."""


@dataclass(frozen=True, slots=True)
class _ContenderTimes:
    """A contender with PyTorch's times in the same rounds, and the versions of packages."""

    timing: Timing
    baseline_ms: tuple[float, ...] | None
    versions: Mapping[str, str]


def compare_benchmarks(
    first: Sequence[Benchmark], second: Sequence[Benchmark], max_slowdown: float
) -> BenchmarkChanges:
    """Compare every contender that both have with the same graph, batch and threads.

    Raises:
        DocumentError: The networks differ, or the contenders cannot be compared.
    """
    if (old := _subject(first)) != (new := _subject(second)):
        raise DocumentError(
            f"the first benchmark measured {old}, the second {new}",
            "compare benchmarks of the same network",
        )
    before, after = _by_key(first), _by_key(second)
    shared = [key for key in before if key in after and key[0] != BASELINE]
    if not shared:
        raise DocumentError(
            "the benchmarks have no contender in common", "measure both with the same options"
        )
    machines = [_machine(results) for results in (first, second)]
    return BenchmarkChanges(
        lines=tuple(_change(key, before[key], after[key], max_slowdown) for key in shared),
        missing=tuple(_describe(key) for key in before if key not in after),
        added=tuple(_describe(key) for key in after if key not in before),
        notices=()
        if machines[0] == machines[1]
        else (f"measured on two machines: {machines[0]}, and {machines[1]}",),
    )


def _change(
    key: Key, first: _ContenderTimes, second: _ContenderTimes, max_slowdown: float
) -> LatencyChange:
    for contender_times in (first, second):
        if not contender_times.timing.round_ms:
            raise DocumentError(
                f"the benchmark of {_describe(key)} has no rounds",
                "measure it again with resdeploy bench",
            )
    times = [np.array(side.timing.round_ms) for side in (first, second)]
    relative_to = None
    same_pytorch = first.versions.get("torch") == second.versions.get("torch")
    if first.baseline_ms and second.baseline_ms and same_pytorch:
        times = [times[0] / first.baseline_ms, times[1] / second.baseline_ms]
        relative_to = BASELINE
    ratio, low, high = unpaired_ratio_interval(*times, confidence=CONFIDENCE)
    limit, samples = 1 + max_slowdown / 100, min(len(rounds) for rounds in times)
    contender, graph, batch, threads = key
    return LatencyChange(
        contender=contender,
        graph=graph,
        batch=batch,
        threads=threads,
        first_ms=first.timing.p50_ms,
        second_ms=second.timing.p50_ms,
        slowdown=percent_more(ratio),
        slowdown_low=percent_more(low),
        slowdown_high=percent_more(high),
        confidence=CONFIDENCE,
        samples=samples,
        samples_to_decide=samples_to_decide((ratio, low, high), limit, samples),
        seconds=None,
        relative_to=relative_to,
        verdict=interval_verdict(low, high, limit),
    )


def _by_key(benchmarks: Sequence[Benchmark]) -> dict[Key, _ContenderTimes]:
    found: dict[Key, _ContenderTimes] = {}
    for benchmark in benchmarks:
        baseline = next((line for line in benchmark.results if line.contender == BASELINE), None)
        for timing in benchmark.results:
            key = (
                timing.contender,
                graph_name(timing.precision, timing.encoding),
                timing.batch,
                timing.threads,
            )
            if key in found:
                dates = ", ".join(sorted({other.environment.date for other in benchmarks}))
                raise DocumentError(
                    f"{_describe(key)} was measured more than once",
                    f"choose one of the dates with FILE@DATE: {dates}",
                )
            aligned = baseline and len(baseline.round_ms) == len(timing.round_ms)
            baseline_ms = baseline.round_ms if baseline and aligned else None
            found[key] = _ContenderTimes(timing, baseline_ms, benchmark.environment.versions)
    return found


def _subject(benchmarks: Sequence[Benchmark]) -> str:
    """Return the networks and modes that were measured, as text."""
    subjects = {
        f"{environment.model} at {size_text(environment.image_size)} pixels"
        + (f" ({environment.mode})" if environment.mode not in (None, "stream") else "")
        for environment in (benchmark.environment for benchmark in benchmarks)
    }
    return " and ".join(sorted(subjects))


def _machine(benchmarks: Sequence[Benchmark]) -> str:
    return " and ".join(sorted({benchmark.environment.device.name for benchmark in benchmarks}))


def _describe(key: Key) -> str:
    contender, graph, batch, threads = key
    return f"{contender} with {graph}, batch {batch}, {plural(threads, 'thread')}"
