"""From rounds to millijoules; and a whole measurement of a rail that a test drives."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, cast

import numpy as np
import pytest

from resdeploy.contender import Contender
from resdeploy.runtime.energy import per_image
from resdeploy.runtime.energy.meter import Meter
from resdeploy.runtime.energy.per_image import (
    Round,
    energy_per_image,
    idle_power,
    run_rounds,
)
from resdeploy.runtime.energy.source import PowerSource, Reading, Scope
from resdeploy.runtime.energy.trace import Trace


def source_of(read: Any) -> PowerSource:
    return PowerSource(name="synthetic", scope=Scope.MODULE, rails=("VIN",), read=read)


NONE = source_of(lambda: None)


def test_idle_is_subtracted() -> None:
    energy = energy_per_image(NONE, [4.0] * 8, [Round(10.0, 5.0)] * 5)
    assert energy is not None
    assert energy.mj_per_image == pytest.approx((10 - 4) * 5)
    assert energy.total_mj_per_image == pytest.approx(10 * 5)
    assert energy.mj_low == energy.mj_high == energy.mj_per_image  # nothing varied
    assert (energy.watts, energy.idle_watts, energy.rounds) == (10.0, 4.0, 5)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        idle = generator.normal(4.0, 0.3, 8)
        rounds = [Round(watts, 5.0) for watts in generator.normal(10.0, 0.5, 5)]
        energy = energy_per_image(NONE, list(idle), rounds)
        assert energy is not None
        covered += energy.mj_low <= 30.0 <= energy.mj_high
    assert 0.94 < covered / 2000 < 0.985  # 95 %, and a little more for the idle power's freedom


@pytest.mark.parametrize(("idle", "rounds"), [(0, 5), (1, 5), (8, 0), (8, 1)])
def test_too_few_windows_give_nothing(idle: int, rounds: int) -> None:
    assert energy_per_image(NONE, [4.0] * idle, [Round(10.0, 5.0)] * rounds) is None


class Clock:
    """In place of the module `time`: a sleep is over at once, and whoever samples is told of it."""

    def __init__(self) -> None:
        self.milliseconds = 0
        self.meters: list[VirtualMeter] = []

    def perf_counter(self) -> float:
        return self.milliseconds / 1000

    def sleep(self, seconds: float) -> None:
        for _ in range(round(1000 * seconds)):
            self.milliseconds += 1
            for meter in self.meters:
                meter.sample(self.perf_counter())


class VirtualMeter:
    """A `Meter` that never misses a millisecond: a thread's samples are late on a busy machine."""

    def __init__(self, clock: Clock, source: PowerSource) -> None:
        self.clock, self.source = clock, source
        self.samples: list[tuple[float, Reading]] = []

    def sample(self, now: float) -> None:
        self.samples.append((now, self.source.read()))

    def trace(self) -> Trace:
        return Trace.of(self.samples, counts=self.source.counts)

    def __enter__(self) -> VirtualMeter:
        self.sample(self.clock.perf_counter())
        self.clock.meters.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.clock.meters.remove(self)


class Rail:
    """A machine that takes 5 W, and 12 W while it runs."""

    def __init__(self) -> None:
        self.running = False
        self.gone = False

    def read(self) -> Reading:
        return None if self.gone else 12.0 if self.running else 5.0


class FakeContender:
    """Takes 10 ms for a run of its batch."""

    def __init__(self, rail: Rail, clock: Clock) -> None:
        self.rail, self.clock = rail, clock
        self.calls = 0

    def run_for(self, seconds: float) -> np.ndarray:
        self.calls += 1
        self.rail.running = True
        self.clock.sleep(seconds)
        self.rail.running = False
        return np.full(round(seconds * 100), 10.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    virtual = Clock()
    monkeypatch.setattr(per_image, "time", virtual)
    monkeypatch.setattr(per_image, "Meter", lambda source: VirtualMeter(virtual, source))
    return virtual


# Between two samples, power is taken as a straight line: at the edges of a window of a second the
# half of a millisecond may be wrong, 0.03 % of what is measured.
EDGES = 1e-3


def test_a_whole_measurement_is_right(clock: Clock) -> None:
    rail = Rail()
    source = source_of(rail.read)
    idle = idle_power(source)
    assert len(idle) == per_image.IDLE_WINDOWS
    contender = cast(Contender, FakeContender(rail, clock))
    ((rounds,),) = run_rounds([contender], [source], batch=4)
    assert len(rounds) == per_image.ROUNDS
    energy = energy_per_image(source, idle, rounds)
    assert energy is not None
    assert energy.mj_per_image == pytest.approx((12 - 5) * 10 / 4, rel=EDGES)
    assert energy.total_mj_per_image == pytest.approx(12 * 10 / 4, rel=EDGES)


def test_rounds_without_the_rail_are_left_out(clock: Clock) -> None:
    rail = Rail()

    class Breaking(FakeContender):
        def run_for(self, seconds: float) -> np.ndarray:
            if self.calls == 3:
                self.clock.sleep(0.1)  # so that the end of the third round is seen
                self.rail.gone = True
            return super().run_for(seconds)

    source = source_of(rail.read)
    idle = idle_power(source)
    ((rounds,),) = run_rounds([cast(Contender, Breaking(rail, clock))], [source], batch=1)
    assert len(rounds) == 3
    energy = energy_per_image(source, idle, rounds)
    assert energy is not None
    assert energy.mj_per_image == pytest.approx((12 - 5) * 10, rel=EDGES)


def test_a_meter_samples_beside_what_runs() -> None:
    """Its thread, with real time: however late, what was read is in the trace."""
    reads: list[float] = []
    enough = threading.Event()

    def read() -> Reading:
        reads.append(5.0)
        if len(reads) == 3:
            enough.set()
        return 5.0

    with Meter(source_of(read), period=0.001) as meter:
        assert enough.wait(60)
    trace = meter.trace()
    assert len(trace.readings) == len(reads) >= 4  # one more when it ends
    assert np.all(trace.readings == 5.0)
    assert np.all(np.diff(trace.seconds) >= 0)
