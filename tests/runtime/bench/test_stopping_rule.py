"""Tests of the rule that ends the runs of a benchmark."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from resdeploy.runtime.bench.rounds import MIN_ROUNDS
from resdeploy.runtime.bench.stopping_rule import (
    MIN_RUNS,
    RUNS,
    is_run_complete,
    narrow_enough,
    plan_runs,
)  # fmt: skip

SHARE = MIN_ROUNDS // RUNS


def rounds_of(mean: float, deviation: float) -> list[Any]:
    """Return five runs of three rounds with normally distributed times."""
    generator = np.random.default_rng(0)
    return [
        [np.array([time] * 3) for time in generator.normal(mean, deviation, 3)] for _ in range(RUNS)
    ]


BASELINE, STEADY, SHAKY = rounds_of(40, 0.1), rounds_of(10, 0.02), rounds_of(10, 1.0)


def test_intervals_are_narrow_if_all_of_them_are() -> None:
    assert narrow_enough(BASELINE, [STEADY], 0.05)
    assert not narrow_enough(BASELINE, [STEADY, SHAKY], 0.05)


@pytest.mark.parametrize(
    ("is_last", "rounds", "seconds_left", "others", "complete"),
    [
        (False, SHARE - 1, -1.0, [STEADY], False),
        (False, SHARE, -1.0, [SHAKY], True),
        (False, SHARE, 1.0, [STEADY], False),
        (True, SHARE - 1, -1.0, [STEADY], False),
        (True, SHARE, 1.0, [STEADY], True),
        (True, SHARE, 1.0, [STEADY, SHAKY], False),
        (True, SHARE, -1.0, [STEADY, SHAKY], True),
    ],
)
def test_a_run_ends(
    is_last: bool, rounds: int, seconds_left: float, others: list[Any], complete: bool
) -> None:
    found = is_run_complete(rounds, seconds_left, BASELINE, others, 0.05, is_last=is_last)
    assert found is complete


def test_without_a_baseline_only_time_ends_a_run() -> None:
    assert not is_run_complete(SHARE, 1.0, None, [STEADY], 0.05, is_last=True)
    assert is_run_complete(SHARE, -1.0, None, [STEADY], 0.05, is_last=True)


@pytest.mark.parametrize(
    ("seconds_left", "restart", "runs", "each"),
    [
        (float("inf"), 10.0, RUNS, 12.0),
        (200.0, 10.0, RUNS, 12.0),
        (80.0, 10.0, RUNS, 8.0),  # restarts take half of the time
        (60.0, 10.0, 4, 7.5),
        (50.0, 10.0, MIN_RUNS, 10.0),
        (10.0, 10.0, MIN_RUNS, 0.0),
        (-5.0, 0.0, MIN_RUNS, 0.0),
    ],
)
def test_runs_fit_in_the_time(seconds_left: float, restart: float, runs: int, each: float) -> None:
    assert plan_runs(60.0, seconds_left, restart) == (runs, each)
