"""Tests of the runs of a benchmark and their end, with fake contenders."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from resdeploy.benchmark_process.worker_process import Contender, Worker
from resdeploy.bundle.manifest import Encoding
from resdeploy.progress import Advance, Progress, silent
from resdeploy.result_files.benchmark import BASELINE
from resdeploy.runtime.bench import runs
from resdeploy.runtime.bench.contenders import ContenderSpec
from resdeploy.runtime.bench.rounds import MIN_ROUNDS
from resdeploy.runtime.bench.runs import ContenderRunner, run_contenders
from resdeploy.runtime.bench.stopping_rule import MIN_RUNS, RUNS
from tests.virtual_time import Clock

LONG_SECONDS = 60.0


class FakeContender:
    """A process whose calls take a given time with noise."""

    started = 0

    def __init__(self, clock: Clock, ms: float, noise: float, sleep: float) -> None:
        type(self).started += 1
        self.facts = {"device": "cpu"}
        self.ready_s = 0.5
        self.high_priority = True
        self.stages: dict[str, Any] = {}
        self.peak_rss_bytes = 1000 * self.started
        self.process = SimpleNamespace(pid=1)
        self._clock, self._ms, self._noise, self._sleep = clock, ms, noise, sleep
        self._generator = np.random.default_rng(self.started)

    def run_for(self, seconds: float) -> Any:
        self._clock.sleep(self._sleep)
        factor = self._generator.uniform(1 - self._noise, 1 + self._noise)
        return np.full(3, self._ms * factor)

    def stop(self) -> None: ...


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def runners(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> list[ContenderRunner]:
    """Return PyTorch and a contender with virtual time."""

    def start(name: str, module: str, arguments: list[str], *rest: object) -> Any:
        noise, sleep = map(float, arguments)
        return FakeContender(clock, 40.0 if name == BASELINE else 10.0, noise, sleep)

    FakeContender.started = 0
    monkeypatch.setattr(runs, "time", clock)
    monkeypatch.setattr(Contender, "start", start)
    return make_runners("0.0", "0.0")


def make_runners(noise: str, sleep: str) -> list[ContenderRunner]:
    return [
        ContenderRunner(
            ContenderSpec(
                name=name,
                precision="fp32",
                encoding=Encoding.FLOAT,
                worker=Worker.RUNTIME,
                arguments=("0.0", sleep) if name == BASELINE else (noise, sleep),
                is_baseline=name == BASELINE,
            )
        )
        for name in (BASELINE, "other")
    ]


def count_rounds(
    runners: list[ContenderRunner],
    *,
    seconds: float,
    within: float,
    deadline: float = math.inf,
    progress: Progress = silent,
) -> int:
    """Carry out all runs and return their number of rounds."""
    run_contenders(
        runners, 1, seconds=seconds, within=within, deadline=deadline, nvml=None, progress=progress
    )
    (count,) = {len(runner.times) for runner in runners}
    return count


def test_each_run_has_new_processes_and_the_last_ones_keep_running(
    runners: list[ContenderRunner],
) -> None:
    assert count_rounds(runners, seconds=LONG_SECONDS, within=0.05) > MIN_ROUNDS
    assert FakeContender.started == 2 * RUNS
    assert [runner.ready_s for runner in runners] == [[0.5] * RUNS] * 2
    assert all(runner.contender is not None for runner in runners)
    assert runners[1].peak_rss_bytes == 1000 * 2 * RUNS


def test_a_slow_starter_is_started_once(
    runners: list[ContenderRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "RESTART_SECONDS", 0.4)
    count_rounds(runners, seconds=1.0, within=0.05)
    assert FakeContender.started == 2


def test_the_last_run_ends_when_the_speed_up_is_known(runners: list[ContenderRunner]) -> None:
    planned = 300  # rounds of 0.2 s in all runs
    least = MIN_ROUNDS // RUNS  # rounds of the last run
    assert count_rounds(runners, seconds=LONG_SECONDS, within=0.05) == 4 * planned // 5 + least
    noisy = make_runners("0.9", "0.0")
    assert count_rounds(noisy, seconds=LONG_SECONDS, within=0.001) == planned


def test_each_run_keeps_its_share_of_the_least_rounds_when_time_is_up(
    runners: list[ContenderRunner],
) -> None:
    slow = make_runners("0.9", "0.02")
    assert count_rounds(slow, seconds=0.1, within=0.001) == MIN_ROUNDS


@pytest.mark.parametrize(("limit", "runs_that_fit"), [(70.0, RUNS), (2.0, MIN_RUNS)])
def test_runs_end_at_the_deadline_and_the_progress_at_its_total(
    runners: list[ContenderRunner], clock: Clock, limit: float, runs_that_fit: int
) -> None:
    totals, advances = [], list[int]()

    @contextmanager
    def progress(what: str, total: int) -> Iterator[Advance]:
        totals.append(total)
        yield advances.append

    noisy = make_runners("0.9", "0.2")
    start = clock.perf_counter()
    count_rounds(
        noisy, seconds=LONG_SECONDS, within=0.001, deadline=start + limit, progress=progress
    )
    assert [len(runner.runs) for runner in noisy] == [runs_that_fit] * 2
    # The warm-ups of noisy contenders are not equally long.
    assert clock.perf_counter() - start < max(1.2 * limit, 25.0)
    assert sum(advances) == totals[0]
    assert min(advances) >= 0
