"""Does the second bundle take longer than the first? Both in turns, on one clock.

A process is a little faster or slower than its twin for as long as it lives, by where its memory
came to lie: 3 % and more were seen at half a millisecond. So both are started anew many times, in
turns, and the interval is one over starts. Within a start the two take turns in short rounds, for
a noisy machine slows both.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resdeploy.bench.process import Contender, Worker
from resdeploy.bench.workload import Workload
from resdeploy.bundle.bundle import Bundle
from resdeploy.machine.device import available_cores
from resdeploy.progress import Progress, silent
from resdeploy.results.comparison import LatencyChange
from resdeploy.runtime.backends.registry import Candidate
from resdeploy.statistics import Verdict, interval_verdict, median_interval

# The interval is looked at so often; 99 % at each look is more than 95 % in all.
LOOKS = (8, 12, 16, 24, 32)
CONFIDENCE = 0.99
ROUNDS = 8
ROUND_SECONDS = 0.1
WARM_UP_SECONDS = 0.2


def percent_more(ratio: float) -> float:
    """1.05 is 5 % more."""
    return 100 * (ratio - 1)


@dataclass(frozen=True, slots=True)
class Program:
    """What a contender's process is: a module, and its arguments."""

    module: str
    arguments: tuple[str, ...]


def program(candidate: Candidate, workload: Workload) -> Program:
    """What runs one artifact of a bundle."""
    arguments = (candidate.engine.name, candidate.artifact.name, *workload.to_arguments())
    return Program(Worker.RUNTIME, arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdown:
    """The second program's time over the first one's, with its interval at `CONFIDENCE`."""

    first_ms: float
    second_ms: float
    ratio: float
    low: float
    high: float
    starts: int


def compare_latency(
    first: Program,
    second: Program,
    *,
    limit: float,
    threads: int,
    seconds: float,
    progress: Progress = silent,
) -> Slowdown:
    """Start both, let them take turns, stop them; again until the interval lies beside `limit`.

    Args:
        first: The program whose time is 1.
        second: The other.
        limit: The ratio of times that is in question.
        threads: Of each.
        seconds: No start after that, once there is an interval.
        progress: Told of each start.

    Raises:
        BackendError: one of them cannot start, or ended early.
    """
    deadline = time.monotonic() + seconds
    generator = random.Random(0)
    starts: list[tuple[float, float, float]] = []
    with progress("timing", LOOKS[-1]) as advance:
        while True:
            starts.append(_one_start((first, second), threads, generator))
            advance(1)
            ratios = np.array([ratio for *_, ratio in starts])
            interval = median_interval(ratios, CONFIDENCE)
            late = time.monotonic() > deadline or len(starts) == LOOKS[-1]
            if interval is None or not (late or len(starts) in LOOKS):
                continue
            if late or interval_verdict(*interval, limit) is not Verdict.INCONCLUSIVE:
                break
    first_ms, second_ms, ratio = np.median(starts, axis=0)
    return Slowdown(
        first_ms=float(first_ms),
        second_ms=float(second_ms),
        ratio=float(ratio),
        low=interval[0],
        high=interval[1],
        starts=len(starts),
    )


def _one_start(
    programs: tuple[Program, Program], threads: int, generator: random.Random
) -> tuple[float, float, float]:
    """Milliseconds of each, and their ratio: medians over rounds.

    The ratio is taken within each round, before the median: a median of times may come from one
    round for the first and from another for the second. On a noisy machine with two cores that
    left 3.8 % of noise between starts with four rounds; this way it is 1.5 % with eight.
    """
    order = [0, 1]
    running: dict[int, Contender] = {}
    times: tuple[list[float], list[float]] = ([], [])
    try:
        generator.shuffle(order)
        for index in order:
            program = programs[index]
            name = ("the first", "the second")[index]
            running[index] = Contender.start(name, program.module, list(program.arguments), threads)
        for contender in running.values():
            contender.run_for(WARM_UP_SECONDS)
        for _ in range(ROUNDS):
            generator.shuffle(order)
            for index in order:
                times[index].append(float(np.median(running[index].run_for(ROUND_SECONDS))))
    finally:
        for contender in running.values():
            contender.stop()
    rounds = np.array(times)
    first, second = (float(one) for one in np.median(rounds, axis=1))
    return first, second, float(np.median(rounds[1] / rounds[0]))


def compare_latencies(
    first: Bundle,
    second: Bundle,
    pairs: Sequence[tuple[Candidate, Candidate]],
    *,
    batch: int,
    threads: int | None,
    seconds: float,
    max_slowdown: float,
    progress: Progress,
) -> tuple[LatencyChange, ...]:
    """Each pair of artifacts on golden images, `seconds` each; 0 for none.

    Raises:
        BackendError: one of them cannot run.
    """
    threads = threads or available_cores()
    changes = []
    for pair in pairs if seconds else ():
        programs = [
            program(candidate, Workload(bundle=bundle.path, batch=batch, threads=threads))
            for bundle, candidate in zip((first, second), pair)
        ]
        found = compare_latency(
            programs[0], programs[1],
            limit=1 + max_slowdown / 100, threads=threads, seconds=seconds, progress=progress,
        )  # fmt: skip
        changes.append(
            LatencyChange(
                contender=pair[0].engine.name,
                graph=pair[0].artifact.name,
                batch=batch,
                threads=threads,
                first_ms=found.first_ms,
                second_ms=found.second_ms,
                slowdown=percent_more(found.ratio),
                slowdown_low=percent_more(found.low),
                slowdown_high=percent_more(found.high),
                confidence=CONFIDENCE,
                samples=found.starts,
                relative_to=None,
                verdict=interval_verdict(found.low, found.high, 1 + max_slowdown / 100),
            )
        )
    return tuple(changes)
