"""The measurement of engines, with processes that report invented times and a clock of its own."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from resdeploy.benchmark_process.worker_process import Contender
from resdeploy.bundle.bundle import Bundle
from resdeploy.errors import BackendError
from resdeploy.progress import silent
from resdeploy.runtime.backends import registry
from resdeploy.runtime.backends.engine_speeds import SpeedKey, read_speeds, speed_key
from resdeploy.runtime.backends.registry import candidates
from resdeploy.runtime.bench.measure_speeds import find_speeds, measure_speeds
from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.runtime.serving.engine_instances import EngineFactory
from tests.fakes import make_engine

MS = {"first": 10.0, "second": 4.0}


class FakeContender:
    """A process that needs `MS` per image, and ten times as long in its first turn."""

    now = 0.0
    started: Sequence[tuple[str, ...]] = ()
    running = 0
    broken = ""
    """Name of the engine that cannot start."""
    dies_in_turn = -1

    def __init__(self, name: str) -> None:
        self.name = name
        self.turns = 0
        FakeContender.running += 1

    @classmethod
    def start(
        cls, name: str, worker: str, arguments: tuple[str, ...], threads: int, limit: float,
        **options: Any,
    ) -> FakeContender:  # fmt: skip
        assert options == {"favoured": False}  # other work of this machine goes on
        if name == cls.broken:
            raise BackendError("its outputs differ", "repair it")
        cls.started = (*cls.started, (name, arguments[1], arguments[3], arguments[4]))
        return cls(name)

    def run_for(self, seconds: float) -> npt.NDArray[np.float64]:
        if self.turns == self.dies_in_turn:
            raise BackendError("it ended early", "read its message")
        factor = 1 if self.turns else 10
        self.turns += 1
        FakeContender.now += seconds
        return np.array([factor * MS[self.name]] * 3 + [1000.0])

    def stop(self) -> None:
        FakeContender.running -= 1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeContender]:
    """Use fake processes of two engines for CPUs."""
    fresh = {"now": 0.0, "started": (), "running": 0, "broken": "", "dies_in_turn": -1}
    for name, value in fresh.items():
        monkeypatch.setattr(FakeContender, name, value)
    monkeypatch.setattr(Contender, "start", FakeContender.start)
    engines = [dataclasses.replace(make_engine(name, ("int8-cpu",)), on_cpu=True) for name in MS]
    monkeypatch.setattr(registry, "ENGINES", tuple(engines))
    return FakeContender


def key_of(bundle: Bundle) -> SpeedKey:
    key = speed_key(candidates(bundle), 3)
    assert key is not None
    return key


@pytest.mark.parametrize(("slower", "rounds"), [(1.0, 9), (30.0, 5)])
def test_engines_take_turns_until_the_time_is_over(
    tiny_bundle: Bundle, fake: type[FakeContender], slower: float, rounds: int
) -> None:
    speeds = measure_speeds(tiny_bundle, key_of(tiny_bundle), silent, lambda: slower * fake.now)
    assert speeds is not None
    assert speeds.round_ms == {name: (ms,) * rounds for name, ms in MS.items()}  # no warm-up
    assert speeds.order == ["second", "first"]
    assert fake.started == tuple((name, "int8-cpu", "1", "3") for name in MS)  # one image, threads
    assert fake.running == 0


@pytest.mark.parametrize("fault", [{"broken": "second"}, {"broken": "first"}, {"dies_in_turn": 3}])
def test_nothing_is_stored_if_an_engine_does_not_run(
    tiny_bundle: Bundle, fake: type[FakeContender], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, fault: dict[str, Any],
) -> None:  # fmt: skip
    for name, value in fault.items():
        monkeypatch.setattr(fake, name, value)
    with caplog.at_level(logging.WARNING, "resdeploy"):
        assert find_speeds(tiny_bundle, "auto", "auto", 7, silent) is None
    assert "the engines are not compared: " in caplog.text
    assert fake.running == 0
    assert read_speeds(dataclasses.replace(key_of(tiny_bundle), threads=7)) is None


def test_a_measurement_is_made_once_unless_asked_for_again(
    tiny_bundle: Bundle, fake: type[FakeContender]
) -> None:
    found = [
        find_speeds(tiny_bundle, "auto", "auto", 5, silent, again=again)
        for again in (False, False, True)
    ]
    assert len(fake.started) == 4
    assert None not in found
    assert found[0] == found[1] == found[2]


def test_a_named_engine_is_not_compared(tiny_bundle: Bundle, fake: type[FakeContender]) -> None:
    assert find_speeds(tiny_bundle, "second", "auto", 5, silent) is None
    assert not fake.started


def test_the_server_measures_before_it_opens_an_engine(
    tiny_bundle: Bundle, fake: type[FakeContender], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # the result counts all the same
    for backend, first in (("auto", "second"), ("first", "first")):
        config = ServeConfig(backend=backend, instances=1, threads=3, max_batch=1)
        (instance,) = EngineFactory(tiny_bundle, config, silent).open_next()
        assert instance.backend == first
        assert instance.artifact == "int8-cpu"
    assert len(fake.started) == 2
