"""Heats and their end, with contenders that only pretend to run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from resdeploy.bench.process import Contender
from resdeploy.bundle.manifest import Encoding
from resdeploy.progress import silent
from resdeploy.runtime.bench import runner as track
from resdeploy.runtime.bench.contenders import BASELINE, Entry
from resdeploy.runtime.bench.rounds import ROUNDS
from resdeploy.runtime.bench.runner import HEATS, Track, race
from tests.virtual_time import Clock

PATIENCE = 60.0


class Pretender:
    """A process that takes what it is told to; each heat's is a little slower than the last's."""

    started = 0

    def __init__(self, clock: Clock, ms: float, noise: float, sleep: float) -> None:
        type(self).started += 1
        self.facts = {"device": "cpu"}
        self.ready_s = 0.5
        self.favoured = True
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
def tracks(monkeypatch: pytest.MonkeyPatch) -> list[Track]:
    """PyTorch, and a contender whose noise its one argument says."""

    def start(name: str, module: str, arguments: list[str], *rest: object) -> Any:
        noise, sleep = map(float, arguments)
        return Pretender(clock, 40.0 if name == BASELINE else 10.0, noise, sleep)

    clock = Clock()
    Pretender.started = 0
    monkeypatch.setattr(track, "time", clock)
    monkeypatch.setattr(Contender, "start", start)
    return make("0.0", "0.0")


def make(noise: str, sleep: str) -> list[Track]:
    return [
        Track(
            Entry(
                name=name,
                precision="fp32",
                encoding=Encoding.FLOAT,
                module="none",
                arguments=("0.0", sleep) if name == BASELINE else (noise, sleep),
            )
        )
        for name in (BASELINE, "other")
    ]


def rounds_of(tracks: list[Track], *, seconds: float, within: float) -> int:
    race(tracks, 1, seconds=seconds, within=within, nvml=None, progress=silent)
    (count,) = {len(track.times) for track in tracks}
    return count


def test_each_heat_has_processes_of_its_own_and_the_last_ones_run_on(tracks: list[Track]) -> None:
    assert rounds_of(tracks, seconds=PATIENCE, within=0.05) > ROUNDS
    assert Pretender.started == 2 * HEATS
    assert [track.ready_s for track in tracks] == [[0.5] * HEATS] * 2
    assert all(track.contender is not None for track in tracks)
    assert tracks[1].peak_rss_bytes == 1000 * 2 * HEATS


def test_who_starts_slowly_is_started_once(
    tracks: list[Track], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(track, "RESTART_SECONDS", 0.4)
    rounds_of(tracks, seconds=1.0, within=0.05)
    assert Pretender.started == 2


def test_the_last_heat_ends_when_the_speed_up_is_known(tracks: list[Track]) -> None:
    planned = 300  # rounds of 0.2 s
    assert rounds_of(tracks, seconds=PATIENCE, within=0.05) == 4 * planned // 5 + 3
    noisy = make("0.9", "0.0")
    assert rounds_of(noisy, seconds=PATIENCE, within=0.001) == planned


def test_when_the_time_is_up_each_heat_keeps_its_share_of_the_least_rounds(
    tracks: list[Track],
) -> None:
    slow = make("0.9", "0.02")
    assert rounds_of(slow, seconds=0.1, within=0.001) == ROUNDS
