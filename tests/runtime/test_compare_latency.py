"""Two programs in turns: a slower one is caught, and a program is not slower than itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from resdeploy.errors import BackendError
from resdeploy.runtime import compare_latency as module
from resdeploy.runtime.compare_latency import LOOKS, Program, compare_latency

# Sleeping takes no less than was asked for, whatever else the machine does.
SLEEPER = """
import sys, time
from resdeploy.contender import answer
answer(lambda: (lambda: time.sleep(float(sys.argv[1])), {}))
"""


@pytest.fixture(autouse=True)
def _short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(module, "ROUND_SECONDS", 0.03)
    monkeypatch.setattr(module, "WARM_UP_SECONDS", 0.0)


def sleeper(seconds: float) -> Program:
    return Program("sleeper", (str(seconds),))


def test_a_tenth_more_is_caught() -> None:
    found = compare_latency(sleeper(0.01), sleeper(0.011), limit=1.05, threads=1, seconds=60)
    assert found.low > 1.05
    assert found.ratio == pytest.approx(1.1, abs=0.04)
    assert found.second_ms > found.first_ms >= 10
    assert found.starts in LOOKS


def test_a_program_is_as_fast_as_itself() -> None:
    found = compare_latency(sleeper(0.01), sleeper(0.01), limit=1.05, threads=1, seconds=60)
    assert found.low <= 1 <= found.high <= 1.05


def test_time_ends_but_not_before_there_is_an_interval() -> None:
    found = compare_latency(sleeper(0.002), sleeper(0.0021), limit=1.05, threads=1, seconds=0.001)
    assert found.starts == LOOKS[0]


def test_a_program_that_cannot_start_is_an_error_and_leaves_none_behind() -> None:
    with pytest.raises(BackendError, match="the second ended early"):
        compare_latency(
            sleeper(0.01), Program("sleeper", ("soon",)), limit=1.05, threads=1, seconds=60
        )
