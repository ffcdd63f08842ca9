"""The comparison of the latency of two bundles, timed in turns.

Two processes of the same program differ in speed, because their memory addresses differ: calls of
0.5 ms differed by 3 % and more. Both programs are therefore started many times, and the interval
includes this variation. After each start they take turns in short rounds, so that noise slows both.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from resdeploy.benchmark_process.worker_process import Contender, Worker
from resdeploy.benchmark_process.workload import Workload
from resdeploy.bundle.bundle import Bundle
from resdeploy.machine.device import available_cores
from resdeploy.progress import Progress, silent
from resdeploy.result_files.comparison import LatencyChange
from resdeploy.runtime.backends.registry import Candidate
from resdeploy.statistics import Verdict, interval_verdict, median_interval

INTERIM_STARTS = (8, 12, 16, 24, 32)
"""The numbers of starts after which the interval is examined."""
CONFIDENCE = 0.99
"""The confidence of each interval; over all `INTERIM_STARTS` it is more than 95 %."""
ROUNDS = 8
ROUND_SECONDS = 0.1
WARM_UP_SECONDS = 0.2
MAX_SAMPLES = 10_000  # the largest result of `samples_to_decide`


def percent_more(ratio: float) -> float:
    """Return a ratio as percent above 1: 5 for 1.05."""
    return 100 * (ratio - 1)


@dataclass(frozen=True, slots=True)
class WorkerCommand:
    """The command of a worker process: a module and its arguments."""

    worker: Worker | str
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyRatio:
    """The ratio of the second latency to the first, with its interval at `CONFIDENCE`."""

    first_ms: float
    second_ms: float
    ratio: float
    low: float
    high: float
    starts: int
    seconds: float


def samples_to_decide(
    interval: tuple[float, float, float], limit: float, samples: int
) -> int | None:
    """Estimate after how many samples the `interval` (ratio, low end, high end) excludes `limit`.

    The estimate assumes that the distance of each end from the ratio is proportional to one over
    the square root of the number. It is None if more than `MAX_SAMPLES` are needed.
    """
    ratio, low, high = interval
    distance = abs(limit - ratio)
    width = high - ratio if ratio <= limit else ratio - low
    if distance * math.sqrt(MAX_SAMPLES) <= width * math.sqrt(samples):
        return None
    return max(1, math.ceil(samples * (width / distance) ** 2))


def compare_latency(
    first: WorkerCommand,
    second: WorkerCommand,
    *,
    limit: float,
    threads: int,
    seconds: float,
    progress: Progress = silent,
) -> LatencyRatio:
    """Start and time both repeatedly, until the interval of the ratio does not contain `limit`.

    The ratio is that of the second time to the first. The time limit `seconds` may be exceeded to
    complete a first interval.

    Raises:
        BackendError: A worker cannot start or ended early.
    """
    began = time.monotonic()
    deadline = began + seconds
    generator = random.Random(0)
    starts: list[tuple[float, float, float]] = []
    with progress("timing", INTERIM_STARTS[-1]) as advance:
        while True:
            starts.append(_time_one_start((first, second), threads, generator))
            advance(1)
            interval = median_interval(np.array(starts)[:, 2], CONFIDENCE)
            is_last = time.monotonic() > deadline or len(starts) == INTERIM_STARTS[-1]
            is_examined = is_last or len(starts) in INTERIM_STARTS
            if interval is None or not is_examined:
                continue
            if is_last or interval_verdict(*interval, limit) is not Verdict.INCONCLUSIVE:
                break
    first_ms, second_ms, ratio = np.median(starts, axis=0)
    return LatencyRatio(
        first_ms=float(first_ms),
        second_ms=float(second_ms),
        ratio=float(ratio),
        low=interval[0],
        high=interval[1],
        starts=len(starts),
        seconds=time.monotonic() - began,
    )


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
    """Compare the latency of each pair of artifacts, for `seconds` each; 0 skips all of them.

    Graphs with equal hashes are skipped, because they are equally fast.
    """
    threads = threads or available_cores()
    limit = 1 + max_slowdown / 100
    workloads = [
        Workload(bundle=bundle.path, batch=batch, threads=threads) for bundle in (first, second)
    ]
    changes = []
    for pair in pairs if seconds else ():
        if pair[0].artifact.sha256 == pair[1].artifact.sha256:
            continue
        commands = [
            WorkerCommand(
                Worker.RUNTIME,
                (candidate.engine.name, candidate.artifact.name, *workload.to_arguments()),
            )
            for candidate, workload in zip(pair, workloads)
        ]
        found = compare_latency(
            *commands, limit=limit, threads=threads, seconds=seconds, progress=progress
        )
        interval = (found.ratio, found.low, found.high)
        estimate = samples_to_decide(interval, limit, found.starts) or math.inf
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
                samples_to_decide=next((n for n in INTERIM_STARTS if n >= estimate), None),
                seconds=found.seconds,
                relative_to=None,
                verdict=interval_verdict(found.low, found.high, limit),
            )
        )
    return tuple(changes)


def _time_one_start(
    commands: tuple[WorkerCommand, WorkerCommand], threads: int, generator: random.Random
) -> tuple[float, float, float]:
    """Start both workers once; return their milliseconds and the ratio, as medians over rounds.

    The median is taken over the ratios of the rounds, because the medians of the two times may come
    from different rounds. On a noisy machine with two cores, the ratio of medians over four rounds
    varied by 3.8 % between starts; the median of ratios over eight rounds varies by 1.5 %.
    """
    order = [0, 1]
    running: dict[int, Contender] = {}
    rounds = np.empty((2, ROUNDS))
    with ExitStack() as stack:
        generator.shuffle(order)
        for index in order:
            name, command = ("the first", "the second")[index], commands[index]
            running[index] = Contender.start(name, command.worker, command.arguments, threads)
            stack.callback(running[index].stop)
        for contender in running.values():
            contender.run_for(WARM_UP_SECONDS)
        for number in range(ROUNDS):
            generator.shuffle(order)
            for index in order:
                rounds[index, number] = np.median(running[index].run_for(ROUND_SECONDS))
    first, second = np.median(rounds, axis=1).tolist()
    return first, second, float(np.median(rounds[1] / rounds[0]))
