"""Tests of rounds and warm-up, with fake contenders."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from resdeploy.runtime.bench.rounds import (
    MAX_WARM_UPS,
    MIN_ROUNDS,
    plan_rounds,
    run_round,
    speedup,
    warm_up,
)


class FakeContender:
    """A contender whose turns take the given times; the last time is repeated."""

    def __init__(self, *milliseconds: float) -> None:
        self._times: Iterator[float] = iter(milliseconds)
        self._last = 0.0
        self.turns: list[float] = []

    def run_for(self, seconds: float) -> Any:
        self.turns.append(seconds)
        self._last = next(self._times, self._last)
        return np.array([self._last] * 3)


def rounds_of(*medians: float) -> list[Any]:
    return [np.array([median]) for median in medians]


def test_warm_up_ends_when_two_turns_agree() -> None:
    contender: Any = FakeContender(30.0, 20.0, 12.0, 11.9)
    assert warm_up(contender)
    assert len(contender.turns) == 4


def test_reports_times_that_never_become_stable() -> None:
    contender: Any = FakeContender(*(float(2**number) for number in range(20)))
    assert not warm_up(contender)
    assert len(contender.turns) == MAX_WARM_UPS


def test_every_round_has_one_turn_of_each_contender() -> None:
    contenders: list[Any] = [FakeContender(float(number)) for number in (1, 2, 3)]
    generator = random.Random(0)
    for _ in range(5):
        times = run_round(contenders, 0.5, generator)
        assert [turn[0] for turn in times] == [1.0, 2.0, 3.0]
    assert all(contender.turns == [0.5] * 5 for contender in contenders)


def test_more_seconds_give_more_rounds_not_longer_turns() -> None:
    assert plan_rounds(1.5) == (MIN_ROUNDS, 0.1)
    rounds, turn = plan_rounds(10.0)
    assert rounds == 50
    assert turn == pytest.approx(0.2)


def test_noise_that_slows_whole_rounds_does_not_change_the_speed_up() -> None:
    noise = np.random.default_rng(0).uniform(1, 3, MIN_ROUNDS)
    found = speedup([rounds_of(*(40 * noise))] * 3, [rounds_of(*(10 * noise))] * 3)
    assert found == pytest.approx((4, 4, 4))
