"""What a machine can do at most, measured beside the contenders: products, and a copy.

A library's products are a contender of their own, whose stages are the kinds of arithmetic.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from resdeploy.bench.process import Rounds
from resdeploy.bench.roofline import Ceilings
from resdeploy.bench.worker import StageTimes

COPY = "copy"
# Rows, depth and columns: libraries differ in which they like best.
SHAPES = ((512, 512, 512), (784, 1152, 128), (2048, 2048, 512))
# More than a level-3 cache holds, so that the copy goes through the memory.
COPY_BYTES = 128 << 20
CALLS = 3
UNIT = 10**9
"""Operations, or bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Something whose speed bounds that of a network."""

    kind: str
    """The arithmetic, or `COPY`."""
    amount: int
    """Operations, or bytes read and written, of one call."""
    run: Callable[[], object]

    def seconds(self) -> float:
        """Of the fastest of `CALLS` in a row: the first finds caches that others have filled."""
        marks = [time.perf_counter()]
        for _ in range(CALLS):
            self.run()
            marks.append(time.perf_counter())
        return min(end - start for start, end in pairwise(marks))


def best_of(probes: Sequence[Probe]) -> Probe:
    """The one that does most a second."""
    return max(probes, key=lambda probe: probe.amount / min(probe.seconds(), probe.seconds()))


def measure_beside(probes: Sequence[Probe]) -> Callable[[], StageTimes]:
    """What `contender.answer` takes: a call of each, timed apart, as the time of `UNIT`.

    Of a unit and not of the call, because the next process may find another shape the best.
    """

    def run() -> StageTimes:
        return StageTimes(
            {probe.kind: round(1e9 * probe.seconds() * UNIT / probe.amount) for probe in probes}
        )

    return run


def ceilings_of(measured: Sequence[Mapping[str, Rounds]]) -> Ceilings | None:
    """The best of all libraries, each with the times of a `UNIT` by kind; None without any.

    Its times are taken as the contenders' are, so that noise is the same for both.
    """
    speeds: dict[str, float] = {}
    for stages in measured:
        for kind, rounds in stages.items():
            speed = 1000 * UNIT / median_of_rounds(rounds)
            speeds[kind] = max(speed, speeds.get(kind, 0.0))
    copied = speeds.pop(COPY, None)
    return Ceilings(operations_per_second=speeds, bytes_per_second=copied) if speeds else None


def median_of_rounds(rounds: Rounds) -> float:
    """The median over rounds of a round's median."""
    return statistics.median(float(np.median(times)) for times in rounds)
