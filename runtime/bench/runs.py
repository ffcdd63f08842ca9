"""The runs of a benchmark: each starts new processes of the contenders and times them in rounds.

Two processes of the same program differ in speed by a few percent, because their memory addresses
differ. New processes in each run make the intervals include this variation.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from resdeploy.benchmark_process.worker_process import Contender, Rounds
from resdeploy.errors import BackendError, ResdeployError
from resdeploy.machine.device import Scope
from resdeploy.machine.nvml import process_memory
from resdeploy.progress import Progress, silent
from resdeploy.runtime.bench.contenders import CEILINGS, ContenderSpec
from resdeploy.runtime.bench.rounds import plan_rounds, run_round, warm_up
from resdeploy.runtime.bench.stopping_rule import is_run_complete, plan_runs

logger = logging.getLogger(__name__)

RESTART_SECONDS = 5.0
"""Contenders that start more slowly than this, such as compilers, keep one process in all runs, and
so do those that measure ceilings."""
START_SECONDS = 180.0
"""The time limit for the start of a contender."""


@dataclass(slots=True)
class ContenderRunner:
    """A contender with its current process and the measurements of all runs."""

    spec: ContenderSpec
    contender: Contender | None = None
    """The current process; None while no process runs."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    runs: list[Rounds] = field(default_factory=list)
    stages: dict[str, Rounds] = field(default_factory=dict)
    ready_s: list[float] = field(default_factory=list)
    """The time from the start of each process to its first answer."""
    peak_rss_bytes: int | None = None
    peak_gpu_bytes: int | None = None
    stable: bool = True
    """True if the times became stable in every warm-up."""
    high_priority: bool = True

    @property
    def times(self) -> Rounds:
        """The rounds of all runs."""
        return [times for run in self.runs for times in run]

    @property
    def restarts(self) -> bool:
        """True if each run has a new process."""
        return self.spec.name != CEILINGS and self.ready_s[0] <= RESTART_SECONDS

    @property
    def running(self) -> Contender:
        """The current process, which must exist."""
        assert self.contender is not None
        return self.contender

    def start(self, threads: int) -> None:
        """Start a process unless one is running."""
        if self.contender is not None:
            return
        spec = self.spec
        self.contender = Contender.start(
            spec.name, spec.worker, spec.arguments, threads, START_SECONDS
        )
        self.facts = self.contender.facts
        self.high_priority &= self.contender.high_priority
        self.ready_s.append(self.contender.ready_s)
        self.spec = replace(
            spec,
            precision=self.facts.get("precision", spec.precision),
            runs_on=Scope.GPU if self.facts.get("device") == "cuda" else spec.runs_on,
            file_bytes=self.facts.get("file_bytes", spec.file_bytes),
        )

    def warm_up(self) -> None:
        """Let the process run until its times are stable."""
        self.stable = warm_up(self.running) and self.stable
        self.running.stages.clear()

    def collect(self, nvml: Any) -> None:
        """Store the stage times and the peak memory of the process."""
        contender = self.running
        for stage, rounds in contender.stages.items():
            self.stages.setdefault(stage, []).extend(rounds)
        contender.stages.clear()
        self.peak_rss_bytes = _larger(self.peak_rss_bytes, contender.peak_rss_bytes)
        self.peak_gpu_bytes = _larger(
            self.peak_gpu_bytes, process_memory(nvml, contender.process.pid)
        )

    def stop(self) -> None:
        """Stop the process if one is running."""
        if self.contender is not None:
            self.contender.stop()
            self.contender = None


def start_all(
    specs: Sequence[ContenderSpec],
    threads: int,
    *,
    required: str | None = None,
    progress: Progress = silent,
) -> list[ContenderRunner]:
    """Start the contenders, and log a warning for each one that cannot start.

    Raises:
        BackendError: No contender can start, or the one named `required` cannot.
    """
    runners: list[ContenderRunner] = []
    try:
        with progress("starting", len(specs)) as advance:
            for spec in specs:
                runner = ContenderRunner(spec)
                try:
                    runner.start(threads)
                    runners.append(runner)
                except ResdeployError as error:
                    if spec.name == required:
                        raise
                    logger.warning("%s is not measured: %s (%s)", spec.label, error, error.hint)
                advance(1)
        if not timed_runners(runners):
            raise BackendError("no contender could start", "read the warnings above")
    except BaseException:
        stop_all(runners)
        raise
    return runners


def stop_all(runners: Sequence[ContenderRunner]) -> None:
    """Stop every process."""
    for runner in runners:
        runner.stop()


def timed_runners(runners: Sequence[ContenderRunner]) -> list[ContenderRunner]:
    """Return the contenders that run the network, without those that measure ceilings."""
    return [runner for runner in runners if runner.spec.name != CEILINGS]


def baseline_of(runners: Sequence[ContenderRunner]) -> ContenderRunner | None:
    """Return the baseline; None if it does not take part."""
    first = timed_runners(runners)[0]
    return first if first.spec.is_baseline else None


def run_contenders(
    runners: Sequence[ContenderRunner],
    threads: int,
    *,
    seconds: float,
    within: float,
    deadline: float = math.inf,
    nvml: Any,
    progress: Progress,
) -> None:
    """Carry out all runs; the last one ends early when the intervals are narrow enough.

    If the deadline is too near, there are fewer and shorter runs, but at least `MIN_RUNS`.

    Args:
        runners: The contenders; all processes of the last run are still running afterwards.
        threads: The number of threads of each contender.
        seconds: The time limit for each contender, unless `rounds.MIN_ROUNDS` take longer.
        within: The largest width of a narrow interval, as a share of its speed-up.
        deadline: The time of `time.perf_counter` at which the runs should end.
        nvml: The module pynvml, or None.
        progress: A callback for the seconds that have passed.
    """
    rounds, turn = plan_rounds(seconds)
    generator = random.Random(0)
    begin = time.perf_counter()
    _begin_run(runners, threads)
    now = time.perf_counter()
    restarts = sum(runner.ready_s[0] for runner in runners if runner.restarts)
    runs, share = plan_runs(seconds * len(runners), deadline - now, now - begin + restarts)
    total = math.ceil(runs * share + (runs - 1) * (now - begin + restarts))
    with progress("benchmarking", total) as advance:
        shown = 0
        for run in range(runs):
            if run:
                _begin_run(runners, threads)
            start, round_seconds = time.perf_counter(), 0.0
            for done in range(math.ceil(rounds / runs)):
                baseline, others = _runs_of(runners)
                # Without a round that would not end in time.
                left = start + share - round_seconds - time.perf_counter()
                is_last = run == runs - 1
                if is_run_complete(done, left, baseline, others, within, is_last=is_last):
                    break
                round_seconds = -time.perf_counter()
                turns = run_round([runner.running for runner in runners], turn, generator)
                for runner, times in zip(runners, turns):
                    runner.runs[-1].append(times)
                round_seconds += time.perf_counter()
                passed = min(int(time.perf_counter() - now), total)
                advance(passed - shown)
                shown = passed
            for runner in runners:
                runner.collect(nvml)
                if run < runs - 1 and runner.restarts:
                    runner.stop()
        advance(total - shown)


def _begin_run(runners: Sequence[ContenderRunner], threads: int) -> None:
    """Start the processes that are not running, and warm all of them up."""
    for runner in runners:
        runner.start(threads)
        runner.warm_up()
        runner.runs.append([])


def _runs_of(
    runners: Sequence[ContenderRunner],
) -> tuple[list[Rounds] | None, list[list[Rounds]]]:
    """Return the rounds of the baseline, if it takes part, and those of each other contender."""
    baseline = baseline_of(runners)
    others = [runner.runs for runner in timed_runners(runners) if runner is not baseline]
    return baseline.runs if baseline else None, others


def _larger(first: int | None, second: int | None) -> int | None:
    return max((number for number in (first, second) if number is not None), default=None)
