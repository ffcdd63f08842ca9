"""Tests of the energy per image, with a simulated power rail."""

from __future__ import annotations

import threading
from typing import Any, cast

import numpy as np
import pytest

from resdeploy.benchmark_process.worker_process import Contender
from resdeploy.machine.device import Scope
from resdeploy.runtime.bench import energy_per_image as per_image
from resdeploy.runtime.bench.energy_per_image import (
    EnergyRound,
    energy_per_image,
    idle_power,
    measure_rounds,
)
from resdeploy.runtime.energy import meter
from resdeploy.runtime.energy.meter import PERIOD_SECONDS, Meter
from resdeploy.runtime.energy.source import PowerSource, Reading
from tests.virtual_time import Clock


def source_of(read: Any) -> PowerSource:
    return PowerSource(name="synthetic", scope=Scope.MODULE, rails=("VIN",), read=read)


SOURCE = source_of(lambda: None)


def test_the_idle_power_is_subtracted() -> None:
    energy = energy_per_image(SOURCE, [4.0] * 8, [EnergyRound(10.0, 5.0)] * 5)
    assert energy is not None
    assert energy.mj_per_image == pytest.approx((10 - 4) * 5)
    assert energy.total_mj_per_image == pytest.approx(10 * 5)
    assert energy.mj_low == energy.mj_high == energy.mj_per_image  # nothing varied
    assert (energy.watts, energy.idle_watts, energy.rounds) == (10.0, 4.0, 5)


def test_the_interval_contains_the_true_value_in_95_percent_of_cases() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        idle = generator.normal(4.0, 0.3, 8)
        rounds = [EnergyRound(watts, 5.0) for watts in generator.normal(10.0, 0.5, 5)]
        energy = energy_per_image(SOURCE, list(idle), rounds)
        assert energy is not None
        covered += energy.mj_low <= 30.0 <= energy.mj_high
    # A little more than 95 %, because the idle power is estimated, too.
    assert 0.94 < covered / 2000 < 0.985


@pytest.mark.parametrize(("idle", "rounds"), [(0, 5), (1, 5), (8, 0), (8, 1)])
def test_too_few_windows_give_no_energy(idle: int, rounds: int) -> None:
    assert energy_per_image(SOURCE, [4.0] * idle, [EnergyRound(10.0, 5.0)] * rounds) is None


class Rail:
    """A power rail with 5 W when idle and 12 W under load."""

    def __init__(self) -> None:
        self.running = False
        self.gone = False

    def read(self) -> Reading:
        return None if self.gone else 12.0 if self.running else 5.0


class FakeContender:
    """A contender whose calls take 10 ms."""

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
    """Return a clock that makes meters sample without a thread."""
    clock = Clock(PERIOD_SECONDS)

    class SteppedMeter(Meter):
        def __enter__(self) -> Meter:
            self._read()
            clock.watchers.append(self._read)
            return self

        def __exit__(self, *_: object) -> None:
            clock.watchers.remove(self._read)
            self._read()

    monkeypatch.setattr(meter, "time", clock)
    monkeypatch.setattr(per_image, "time", clock)
    monkeypatch.setattr(per_image, "Meter", SteppedMeter)
    return clock


def test_a_whole_measurement_is_accurate_to_1_percent(clock: Clock) -> None:
    rail = Rail()
    source = source_of(rail.read)
    idle = idle_power(source)
    assert idle == pytest.approx([5.0] * per_image.IDLE_WINDOWS)
    contender = cast(Contender, FakeContender(rail, clock))
    ((rounds,),) = measure_rounds([contender], [source], batch=4)
    assert len(rounds) == per_image.ROUNDS
    energy = energy_per_image(source, idle, rounds)
    assert energy is not None
    assert energy.mj_per_image == pytest.approx((12 - 5) * 10 / 4, rel=0.01)
    assert energy.total_mj_per_image == pytest.approx(12 * 10 / 4, rel=0.01)


def test_rounds_without_readings_are_left_out(clock: Clock) -> None:
    rail = Rail()

    class Breaking(FakeContender):
        def run_for(self, seconds: float) -> np.ndarray:
            if self.calls == 3:
                clock.sleep(PERIOD_SECONDS)  # so that the third round is sampled completely
                self.rail.gone = True
            return super().run_for(seconds)

    source = source_of(rail.read)
    idle = idle_power(source)
    ((rounds,),) = measure_rounds([cast(Contender, Breaking(rail, clock))], [source], batch=1)
    assert len(rounds) == 3
    energy = energy_per_image(source, idle, rounds)
    assert energy is not None
    assert energy.mj_per_image == pytest.approx((12 - 5) * 10, rel=0.01)


def test_a_meter_samples_in_a_thread() -> None:
    # This is the only test with a real thread. It waits for the samples, however long they take.
    readings = threading.Semaphore(0)

    def read() -> Reading:
        readings.release()
        return 5.0

    with Meter(source_of(read), period=0.001) as meter:
        assert all(readings.acquire(timeout=600) for _ in range(3))
    trace = meter.trace()
    assert len(trace.seconds) >= 4  # three from the thread and one at the end
    assert (np.diff(trace.seconds) > 0).all()
    assert set(trace.readings) == {5.0}
