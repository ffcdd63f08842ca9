"""Contenders through all runs of a benchmark: their processes, and what they leave behind.

Each run has processes of its own: where its memory lies makes one process a little faster than the
next, and an interval must know of that. Every start is timed, too.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from resdeploy.bench.process import Contender, Rounds
from resdeploy.errors import BackendError, ResdeployError
from resdeploy.machine.device import Scope
from resdeploy.machine.nvml import process_memory
from resdeploy.progress import Progress
from resdeploy.runtime.bench.contenders import BASELINE, CEILINGS, ContenderSpec
from resdeploy.runtime.bench.rounds import ROUNDS, narrow_enough, run_round, turns, warm_up

logger = logging.getLogger(__name__)

RUNS = 5
# Who takes longer to be ready runs on in the next run: compilers, above all.
RESTART_SECONDS = 5.0
START_SECONDS = 180.0


@dataclass(slots=True)
class ContenderRunner:
    """One contender through all runs."""

    entry: ContenderSpec
    contender: Contender | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    runs: list[Rounds] = field(default_factory=list)
    stages: dict[str, Rounds] = field(default_factory=dict)
    ready_s: list[float] = field(default_factory=list)
    peak_rss_bytes: int | None = None
    peak_gpu_bytes: int | None = None
    stable: bool = True
    high_priority: bool = True

    @property
    def times(self) -> Rounds:
        """Of all runs."""
        return [rounds for run in self.runs for rounds in run]

    @property
    def running(self) -> Contender:
        """Its process."""
        assert self.contender is not None
        return self.contender

    def start(self, threads: int) -> None:
        """Start a process, unless one is running.

        Raises:
            BackendError: it cannot start.
        """
        if self.contender is not None:
            return
        entry = self.entry
        self.contender = Contender.start(
            entry.name, entry.module, list(entry.arguments), threads, START_SECONDS
        )
        self.facts = self.contender.facts
        self.high_priority = self.high_priority and self.contender.high_priority
        self.ready_s.append(self.contender.ready_s)
        on_gpu = self.facts.get("device") == "cuda"
        self.entry = replace(
            entry,
            precision=self.facts.get("precision", entry.precision),
            runs_on=Scope.GPU if on_gpu else entry.runs_on,
            file_bytes=self.facts.get("file_bytes", entry.file_bytes),
        )

    def warm_up(self) -> None:
        """Run until times are stable."""
        self.stable = warm_up(self.running) and self.stable
        self.running.stages.clear()

    def collect(self, nvml: Any) -> None:
        """What the process has told besides its times."""
        for stage, rounds in self.running.stages.items():
            self.stages.setdefault(stage, []).extend(rounds)
        self.running.stages.clear()
        gpu = process_memory(nvml, self.running.process.pid)
        self.peak_rss_bytes = _larger(self.peak_rss_bytes, self.running.peak_rss_bytes)
        self.peak_gpu_bytes = _larger(self.peak_gpu_bytes, gpu)

    def stop(self) -> None:
        """End the process, if there is one."""
        if self.contender is not None:
            self.contender.stop()
            self.contender = None


def start_all(
    entries: Sequence[ContenderSpec], threads: int, *, needed: str | None = None
) -> list[ContenderRunner]:
    """Those that can start, in order; of the others the reason is logged.

    Args:
        entries: Who takes part.
        threads: Of each.
        needed: Who may not be left out.

    Raises:
        BackendError: `needed`, or none of those that run_contenders, could start.
    """
    runners: list[ContenderRunner] = []
    try:
        for entry in entries:
            runner = ContenderRunner(entry)
            try:
                runner.start(threads)
            except ResdeployError as error:
                if entry.name == needed:
                    raise
                logger.warning("%s is left out: %s (%s)", entry.label, error, error.hint)
                continue
            runners.append(runner)
        if not timed_runners(runners):
            raise BackendError("not one contender could start", "see the warnings above")
    except BaseException:
        stop_all(runners)
        raise
    return runners


def stop_all(runners: Sequence[ContenderRunner]) -> None:
    """End every process."""
    for runner in runners:
        runner.stop()


def timed_runners(runners: Sequence[ContenderRunner]) -> list[ContenderRunner]:
    """Those that run the network, the baseline first where it takes part."""
    return [runner for runner in runners if runner.entry.name != CEILINGS]


def baseline_of(runners: Sequence[ContenderRunner]) -> ContenderRunner | None:
    """The one that the others are compared with."""
    first = timed_runners(runners)[0]
    return first if first.entry.name == BASELINE else None


def run_contenders(
    runners: Sequence[ContenderRunner],
    threads: int,
    *,
    seconds: float,
    within: float,
    nvml: Any,
    progress: Progress,
) -> None:
    """All runs, of equal length; the last one ends when enough is known.

    Args:
        runners: Started; they are running afterwards.
        threads: Of each.
        seconds: At most, for each, unless `ROUNDS` take longer.
        within: Widest interval of a speed-up, as a share of it, that is enough.
        nvml: NVIDIA's module, or None.
        progress: Told of each round.
    """
    rounds, turn = turns(seconds)
    generator = random.Random(0)
    with progress("benchmarking", rounds) as advance:
        for run in range(RUNS):
            for runner in runners:
                runner.start(threads)
                runner.warm_up()
                runner.runs.append([])
            left = seconds * len(runners) / RUNS
            for number in range((run + 1) * rounds // RUNS - run * rounds // RUNS):
                if number >= max(ROUNDS // RUNS, 1) and (
                    left < 0 or (run == RUNS - 1 and _known(runners, within))
                ):
                    break
                start = time.perf_counter()
                laps = run_round([runner.running for runner in runners], turn, generator)
                for runner, lap in zip(runners, laps):
                    runner.runs[-1].append(lap)
                left -= time.perf_counter() - start
                advance(1)
            for runner in runners:
                runner.collect(nvml)
                if run < RUNS - 1 and runner.ready_s[0] <= RESTART_SECONDS:
                    runner.stop()


def _known(runners: Sequence[ContenderRunner], within: float) -> bool:
    baseline = baseline_of(runners)
    others = [runner.runs for runner in timed_runners(runners) if runner is not baseline]
    return baseline is not None and narrow_enough(baseline.runs, others, within)


def _larger(first: int | None, second: int | None) -> int | None:
    known = [number for number in (first, second) if number is not None]
    return max(known, default=None)
