"""Two benchmarks that were made at different times: what became slower?

The machine may have been slower as a whole. So where both hold the same PyTorch, a contender's
time is divided by PyTorch's of the same round before the two are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from resdeploy.bundle.manifest import graph_name
from resdeploy.errors import DocumentError
from resdeploy.results.benchmark import BASELINE, BenchmarkDocument, Timing
from resdeploy.results.comparison import LatencyChange
from resdeploy.runtime.comparison.latency import percent_more
from resdeploy.statistics import FloatArray, interval_verdict, unpaired_ratio_interval

CONFIDENCE = 0.95
Key = tuple[str, str, int, int]
"""Contender, graph, batch, threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkChanges:
    """What `compare_benchmarks` found."""

    lines: tuple[LatencyChange, ...]
    missing: tuple[str, ...]
    """What only the first has."""
    added: tuple[str, ...]
    notices: tuple[str, ...]
    """Why times cannot be held against each other, if they cannot."""


@dataclass(frozen=True, slots=True)
class _Measured:
    """One contender, with PyTorch's times in the same rounds, if there are any."""

    timing: Timing
    baseline: FloatArray | None
    versions: Mapping[str, str]

    @property
    def rounds(self) -> FloatArray:
        """Milliseconds."""
        return np.array(self.timing.round_ms)


def compare_benchmarks(
    first: Sequence[BenchmarkDocument], second: Sequence[BenchmarkDocument], max_slowdown: float
) -> BenchmarkChanges:
    """Every contender that both have, by its name, graph, batch and threads.

    Raises:
        DocumentError: they measured different things, or nothing in common.
    """
    if (old := _subject(first)) != (new := _subject(second)):
        raise DocumentError(
            f"one benchmark is of {old}, the other of {new}", "compare those of one network"
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
        missing=tuple(_words(key) for key in before if key not in after),
        added=tuple(_words(key) for key in after if key not in before),
        notices=()
        if machines[0] == machines[1]
        else (f"measured on two machines: {machines[0]}, and {machines[1]}",),
    )


def _change(key: Key, first: _Measured, second: _Measured, max_slowdown: float) -> LatencyChange:
    for one in (first, second):
        if not one.timing.round_ms:
            raise DocumentError(
                f"{_words(key)} was measured without rounds", "measure it with resdeploy bench"
            )
    times, relative_to = (first.rounds, second.rounds), None
    if (
        first.baseline is not None
        and second.baseline is not None
        and first.versions.get("torch") == second.versions.get("torch")
    ):
        times = times[0] / first.baseline, times[1] / second.baseline
        relative_to = BASELINE
    ratio, low, high = unpaired_ratio_interval(*times, confidence=CONFIDENCE)
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
        samples=min(len(one) for one in times),
        relative_to=relative_to,
        verdict=interval_verdict(low, high, 1 + max_slowdown / 100),
    )


def _by_key(benchmarks: Sequence[BenchmarkDocument]) -> dict[Key, _Measured]:
    found: dict[Key, _Measured] = {}
    for benchmark in benchmarks:
        baseline = next((one for one in benchmark.results if one.contender == BASELINE), None)
        for timing in benchmark.results:
            key = (
                timing.contender,
                graph_name(timing.precision, timing.encoding),
                timing.batch,
                timing.threads,
            )
            if key in found:
                dates = ", ".join(sorted({one.environment.date for one in benchmarks}))
                raise DocumentError(
                    f"{_words(key)} was measured more than once",
                    f"choose one date with FILE@DATE: {dates}",
                )
            same = baseline and len(baseline.round_ms) == len(timing.round_ms)
            times = np.array(baseline.round_ms) if baseline and same else None
            found[key] = _Measured(timing, times, benchmark.environment.versions)
    return found


def _subject(benchmarks: Sequence[BenchmarkDocument]) -> str:
    """What was measured, of all of them."""
    subjects = {
        f"{one.model} at {one.image_size} pixels"
        + (f" ({one.mode})" if one.mode not in (None, "stream") else "")
        for one in (benchmark.environment for benchmark in benchmarks)
    }
    return " and ".join(sorted(subjects))


def _machine(benchmarks: Sequence[BenchmarkDocument]) -> str:
    return " and ".join(sorted({one.environment.device.name for one in benchmarks}))


def _words(key: Key) -> str:
    contender, graph, batch, threads = key
    plural = "" if threads == 1 else "s"
    return f"{contender} with {graph}, batch {batch}, {threads} thread{plural}"
