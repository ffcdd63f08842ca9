"""The ceilings of a machine: the highest rates of matrix products and of a copy.

One contender for each library times matrix products and reports each arithmetic as a stage.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from resdeploy.benchmark_process.roofline import Ceilings
from resdeploy.benchmark_process.worker_loop import StageTimes
from resdeploy.benchmark_process.worker_process import Rounds

COPY = "copy"
SHAPES = ((512, 512, 512), (784, 1152, 128), (2048, 2048, 512))
"""Rows, depth and columns; the fastest shape differs between libraries."""
COPY_BYTES = 128 << 20
"""The size of a copy that does not fit into a level-3 cache, so that main memory is measured."""
CALLS = 3
UNIT = 10**9
"""The number of operations or bytes that reported times refer to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """An operation whose rate is a ceiling for networks."""

    kind: str
    """The arithmetic, or `COPY`."""
    amount: int
    """Operations, or bytes read and written, of one call."""
    run: Callable[[], object]

    def seconds(self) -> float:
        """Return the time of the fastest of `CALLS` calls; the first one has cold caches."""
        marks = [time.perf_counter()]
        for _ in range(CALLS):
            self.run()
            marks.append(time.perf_counter())
        return min(end - start for start, end in pairwise(marks))


def fastest_probe(probes: Sequence[Probe]) -> Probe:
    """Return the probe with the highest rate."""
    return max(probes, key=lambda probe: probe.amount / min(probe.seconds(), probe.seconds()))


def probe_timer(probes: Sequence[Probe]) -> Callable[[], StageTimes]:
    """Return a function for `run_worker` that times every probe and scales the time to `UNIT`.

    Scaled times can be compared even if another process chooses another shape.
    """
    return lambda: StageTimes(
        {probe.kind: round(1e9 * probe.seconds() * UNIT / probe.amount) for probe in probes}
    )


def best_ceilings(measured: Sequence[Mapping[str, Rounds]]) -> Ceilings | None:
    """Return the highest rates of all libraries; None without measurements.

    Args:
        measured: Times of a `UNIT` in milliseconds by arithmetic, for each library.
    """
    rates: dict[str, float] = {}
    for stages in measured:
        for kind, rounds in stages.items():
            rate = 1000 * UNIT / median_of_rounds(rounds)
            rates[kind] = max(rate, rates.get(kind, 0.0))
    copy_rate = rates.pop(COPY, None)
    return Ceilings(operations_per_second=rates, bytes_per_second=copy_rate) if rates else None


def median_of_rounds(rounds: Rounds) -> float:
    """Return the median over rounds of the median of each round."""
    return statistics.median(float(np.median(times)) for times in rounds)
