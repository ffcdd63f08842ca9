"""Two programs in turns: a slower one is caught, and a program is not slower than itself."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resdeploy.bench.process import Contender
from resdeploy.errors import BackendError
from resdeploy.runtime.comparison import latency as module
from resdeploy.runtime.comparison.latency import LOOKS, Program, compare_latency
from resdeploy.statistics import Verdict, interval_verdict

SLEEPER = """
import sys, time
from resdeploy.bench.worker import run_worker
run_worker(lambda: (lambda: time.sleep(float(sys.argv[1])), {}))
"""


@pytest.fixture(autouse=True)
def _short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(module, "ROUND_SECONDS", 0.03)
    monkeypatch.setattr(module, "WARM_UP_SECONDS", 0.0)


def sleeper(seconds: float) -> Program:
    return Program("sleeper", (str(seconds),))


class Pretender:
    """A process 1 % faster or slower than its twins for as long as it lives, in noisy rounds."""

    def __init__(self, seconds: float, generator: random.Random) -> None:
        self._ms = 1000 * seconds * generator.gauss(1, 0.01)
        self._generator = generator

    def run_for(self, seconds: float) -> Any:
        return np.array([self._ms * self._generator.gauss(1, 0.02) for _ in range(3)])

    def stop(self) -> None: ...


@pytest.fixture
def _pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that take exactly the time they say, which no real ones do on a busy machine."""
    generator = random.Random(0)

    def start(name: str, module: str, arguments: list[str], *rest: object) -> Any:
        return Pretender(float(arguments[0]), generator)

    monkeypatch.setattr(Contender, "start", start)


@pytest.mark.usefixtures("_pretended")
def test_a_tenth_more_is_caught() -> None:
    found = compare_latency(sleeper(0.01), sleeper(0.011), limit=1.05, threads=1, seconds=600)
    assert found.low > 1.05
    assert found.ratio == pytest.approx(1.1, abs=0.02)
    assert found.first_ms == pytest.approx(10, rel=0.02)
    assert found.second_ms == pytest.approx(11, rel=0.02)
    assert found.starts in LOOKS


@pytest.mark.usefixtures("_pretended")
def test_a_program_is_as_fast_as_itself() -> None:
    found = compare_latency(sleeper(0.01), sleeper(0.01), limit=1.05, threads=1, seconds=600)
    assert found.low <= 1 <= found.high <= 1.05


class Crowded(Pretender):
    """The same where neighbours slow whole rounds down, and now and then one turn alone."""

    turns = 0
    factor = 1.0

    def run_for(self, seconds: float) -> Any:
        if Crowded.turns % 2 == 0:  # both have a turn in each round
            Crowded.factor = self._generator.uniform(1, 2)
        Crowded.turns += 1
        alone = 1.5 if self._generator.random() < 0.2 else 1.0
        return super().run_for(seconds) * Crowded.factor * alone


def test_neighbours_that_slow_both_do_not_part_them(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(0)
    monkeypatch.setattr(Contender, "start", lambda *_: Crowded(0.01, generator))
    same = Program("crowded", ())
    verdicts = [
        interval_verdict(found.low, found.high, 1.05)
        for found in (
            compare_latency(same, same, limit=1.05, threads=1, seconds=600) for _ in range(20)
        )
    ]
    assert verdicts == [Verdict.PASS] * 20


def test_time_ends_but_not_before_there_is_an_interval() -> None:
    found = compare_latency(sleeper(0.002), sleeper(0.0021), limit=1.05, threads=1, seconds=0.001)
    assert found.starts == LOOKS[0]
    assert found.first_ms >= 2  # sleeping takes no less than was asked for


def test_a_program_that_cannot_start_is_an_error_and_leaves_none_behind() -> None:
    with pytest.raises(BackendError, match="the second ended early"):
        compare_latency(
            sleeper(0.01), Program("sleeper", ("soon",)), limit=1.05, threads=1, seconds=60
        )
