"""The energy of a synthetic power curve with a known integral."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from resdeploy.runtime.energy.source import Reading
from resdeploy.runtime.energy.trace import MAX_GAP_SECONDS, Trace

# A sine with a period of 1.5 s and an amplitude of 5 W, around 9 W.
MEAN, AMPLITUDE, FREQUENCY = 9.0, 5.0, 2 * math.pi / 1.5
SECONDS = 20.0
PERIOD = 0.02


def power(when: float) -> float:
    return MEAN + AMPLITUDE * math.sin(FREQUENCY * when)


def energy(start: float, end: float) -> float:
    difference = math.cos(FREQUENCY * start) - math.cos(FREQUENCY * end)
    return MEAN * (end - start) + AMPLITUDE / FREQUENCY * difference


def sampled(period: float = PERIOD, *, jitter: float = 0.3) -> list[tuple[float, Reading]]:
    generator = np.random.default_rng(0)
    steps = period * (1 + jitter * generator.uniform(-1, 1, int(SECONDS / period) + 1))
    return [(when, power(when)) for when in np.cumsum(steps) - steps[0] if when <= SECONDS]


WINDOWS = [(0.5, 1.0), (2.0, 3.0), (3.1, 7.77), (0.5, 19.0)]


def error_percent(
    samples: Sequence[tuple[float, Reading]], start: float, end: float, *, cumulative: bool = False
) -> float:
    measured = Trace.from_samples(samples, cumulative=cumulative).energy(start, end)
    assert measured is not None
    return 100 * abs(measured / energy(start, end) - 1)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("period", [PERIOD, 0.1])  # those of `Meter` and of tegrastats
def test_energy_from_power_is_within_1_percent(period: float, window: tuple[float, float]) -> None:
    assert error_percent(sampled(period), *window) < 1


@pytest.mark.parametrize("window", WINDOWS)
def test_energy_from_a_counter_is_within_1_percent(window: tuple[float, float]) -> None:
    samples = [(when, energy(0, when)) for when, _ in sampled()]
    assert error_percent(samples, *window, cumulative=True) < 1


def test_short_gaps_are_interpolated_within_1_percent() -> None:
    generator = np.random.default_rng(1)
    samples = sampled()
    failed = [(when, None if generator.random() < 0.3 else value) for when, value in samples]
    missing = [(when, value) for when, value in samples if when % 2 > 0.2]  # 0.2 s of every 2 s
    for start, end in WINDOWS:
        assert error_percent(failed, start, end) < 1
    assert error_percent(missing, 0.5, 19.0) < 1


def test_negative_totals_are_failed_readings() -> None:
    generator = np.random.default_rng(2)
    spoilt = [
        (when, -value if generator.random() < 0.2 and value else value) for when, value in sampled()
    ]
    assert any(value is not None and value < 0 for _, value in spoilt)
    for window in WINDOWS:
        assert error_percent(spoilt, *window) < 1


def test_energy_across_a_long_gap_is_unknown() -> None:
    gap = (5.0, 5.0 + 2 * MAX_GAP_SECONDS)
    samples = [(when, value) for when, value in sampled() if not gap[0] < when < gap[1]]
    trace = Trace.from_samples(samples)
    assert trace.energy(4.5, 5.2) is None
    assert trace.energy(5.2, 5.4) is None
    assert trace.energy(4.0, 8.0) is None
    assert error_percent(samples, 2.0, 4.9) < 1
    assert error_percent(samples, 6.1, 12.0) < 1


def test_energy_is_unknown_after_the_last_reading() -> None:
    samples = [(when, value if when < 8 else None) for when, value in sampled()]
    trace = Trace.from_samples(samples)
    assert error_percent(samples, 1.0, 7.9) < 1
    assert trace.energy(7.0, 9.0) is None
    assert trace.energy(10.0, 11.0) is None


@pytest.mark.parametrize("samples", [[], [(0.0, None)], [(0.0, -3.0)]])
def test_energy_without_readings_is_unknown(samples: list[tuple[float, Reading]]) -> None:
    assert Trace.from_samples(samples).energy(0.0, 1.0) is None


def test_energy_before_the_first_reading_is_unknown() -> None:
    assert Trace.from_samples([(1.0, 2.0), (1.2, 2.0)]).energy(0.9, 1.1) is None
