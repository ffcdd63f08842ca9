"""Two programs in turns: a slower one is caught, and a program is not slower than itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from resdeploy.contender import Contender
from resdeploy.errors import BackendError
from resdeploy.runtime.compare_latency import LOOKS, Program, compare_latency

NOISE_OF_A_PROCESS = 0.02
NOISE_OF_A_RUN = 0.1
PATIENCE = 60.0


class Pretender:
    """A process that is a little faster or slower than its twins, as it says and not by a clock."""

    def __init__(self, milliseconds: float, generator: np.random.Generator) -> None:
        self.mean = milliseconds * generator.lognormal(0, NOISE_OF_A_PROCESS)
        self.generator = generator

    def run_for(self, seconds: float) -> np.ndarray:
        return self.mean * self.generator.lognormal(0, NOISE_OF_A_RUN, 10)

    def stop(self) -> None: ...


@pytest.fixture
def _pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)

    def start(name: str, module: str, arguments: list[str], threads: int) -> Pretender:
        return Pretender(float(arguments[0]), generator)

    monkeypatch.setattr(Contender, "start", start)


def takes(milliseconds: float) -> Program:
    return Program("pretender", (str(milliseconds),))


@pytest.mark.usefixtures("_pretend")
def test_a_tenth_more_is_caught() -> None:
    found = compare_latency(takes(10), takes(11), limit=1.05, threads=1, seconds=PATIENCE)
    assert found.low > 1.05
    # Of 8 starts, each 2 % beside the truth or more: 1 % for their mean, three times that at most.
    assert found.ratio == pytest.approx(1.1, abs=0.03)
    assert found.second_ms > found.first_ms
    assert found.starts in LOOKS


@pytest.mark.usefixtures("_pretend")
def test_a_program_is_as_fast_as_itself() -> None:
    found = compare_latency(takes(10), takes(10), limit=1.05, threads=1, seconds=PATIENCE)
    assert found.low <= 1 <= found.high <= 1.05


@pytest.mark.usefixtures("_pretend")
def test_time_ends_but_not_before_there_is_an_interval() -> None:
    found = compare_latency(takes(2), takes(2.1), limit=1.05, threads=1, seconds=0.0)
    assert found.starts == LOOKS[0]


SLEEPER = """
import sys, time
from resdeploy.contender import answer
answer(lambda: (lambda: time.sleep(float(sys.argv[1])), {}))
"""


def test_a_program_that_cannot_start_is_an_error_and_leaves_none_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    first, second = Program("sleeper", ("0.01",)), Program("sleeper", ("soon",))
    with pytest.raises(BackendError, match="the second ended early"):
        compare_latency(first, second, limit=1.05, threads=1, seconds=PATIENCE)
