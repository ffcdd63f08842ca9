"""Tests of the comparison of two latencies, mostly with fake processes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resdeploy.benchmark_process.worker_process import Contender
from resdeploy.errors import BackendError
from resdeploy.runtime.comparison import latency as module
from resdeploy.runtime.comparison.latency import (
    INTERIM_STARTS,
    WorkerCommand,
    compare_latency,
    samples_to_decide,
)
from resdeploy.statistics import Verdict, interval_verdict

SLEEPER = """
import sys, time
from resdeploy.benchmark_process.worker_loop import run_worker
run_worker(lambda: (lambda: time.sleep(float(sys.argv[1])), {}))
"""


@pytest.fixture(autouse=True)
def _short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "sleeper.py").write_text(SLEEPER)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(module, "ROUND_SECONDS", 0.03)
    monkeypatch.setattr(module, "WARM_UP_SECONDS", 0.0)


def sleeper(seconds: float) -> WorkerCommand:
    return WorkerCommand("sleeper", (str(seconds),))


class FakeContender:
    """A process whose speed differs by 1 % between starts, with noisy rounds."""

    def __init__(self, seconds: float, generator: random.Random) -> None:
        self._ms = 1000 * seconds * generator.gauss(1, 0.01)
        self._generator = generator

    def run_for(self, seconds: float) -> Any:
        return np.array([self._ms * self._generator.gauss(1, 0.02) for _ in range(3)])

    def stop(self) -> None: ...


@pytest.fixture
def _fake_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace real processes, whose times are not exact on a busy machine."""
    generator = random.Random(0)

    def start(name: str, module: str, arguments: list[str], *rest: object) -> Any:
        return FakeContender(float(arguments[0]), generator)

    monkeypatch.setattr(Contender, "start", start)


@pytest.mark.usefixtures("_fake_processes")
def test_detects_a_slowdown_of_10_percent() -> None:
    found = compare_latency(sleeper(0.01), sleeper(0.011), limit=1.05, threads=1, seconds=600)
    assert found.low > 1.05
    assert found.ratio == pytest.approx(1.1, abs=0.02)
    assert found.first_ms == pytest.approx(10, rel=0.02)
    assert found.second_ms == pytest.approx(11, rel=0.02)
    assert found.starts in INTERIM_STARTS


@pytest.mark.usefixtures("_fake_processes")
def test_a_worker_is_as_fast_as_itself() -> None:
    found = compare_latency(sleeper(0.01), sleeper(0.01), limit=1.05, threads=1, seconds=600)
    assert found.low <= 1 <= found.high <= 1.05


class NoisyContender(FakeContender):
    """A process on a noisy machine, which slows whole rounds and sometimes single turns."""

    turns = 0
    factor = 1.0

    def run_for(self, seconds: float) -> Any:
        if NoisyContender.turns % 2 == 0:  # each round has two turns
            NoisyContender.factor = self._generator.uniform(1, 2)
        NoisyContender.turns += 1
        alone = 1.5 if self._generator.random() < 0.2 else 1.0
        return super().run_for(seconds) * NoisyContender.factor * alone


def test_noise_that_slows_both_does_not_change_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(0)
    monkeypatch.setattr(Contender, "start", lambda *_: NoisyContender(0.01, generator))
    same = WorkerCommand("noisy", ())
    verdicts = [
        interval_verdict(found.low, found.high, 1.05)
        for found in (
            compare_latency(same, same, limit=1.05, threads=1, seconds=600) for _ in range(20)
        )
    ]
    assert verdicts == [Verdict.PASS] * 20


def test_the_first_interval_is_completed_after_the_time_limit() -> None:
    found = compare_latency(sleeper(0.002), sleeper(0.0021), limit=1.05, threads=1, seconds=0.001)
    assert found.starts == INTERIM_STARTS[0]
    assert found.first_ms >= 2  # sleep never ends early


@pytest.mark.parametrize(
    ("interval", "needed"),
    [
        ((1.02, 1.00, 1.035), 3),  # decided: half of the distance to the limit
        ((1.04, 1.02, 1.07), 90),  # the upper end is three times as far away as the limit
        ((1.08, 1.04, 1.12), 18),  # slower, but the lower end is below the limit
        ((1.05, 1.04, 1.06), None),
    ],
)
def test_estimates_how_many_starts_decide(
    interval: tuple[float, float, float], needed: int | None
) -> None:
    estimate = samples_to_decide(interval, 1.05, 10)
    assert estimate == (None if needed is None else pytest.approx(needed, abs=1))


def test_raises_if_a_worker_cannot_start() -> None:
    with pytest.raises(BackendError, match="of the second ended early"):
        compare_latency(
            sleeper(0.01), WorkerCommand("sleeper", ("soon",)), limit=1.05, threads=1, seconds=60
        )
