"""Tests of the rule that ends the runs of a benchmark."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from resdeploy.runtime.bench.rounds import MIN_ROUNDS
from resdeploy.runtime.bench.stopping_rule import RUNS, is_run_complete, narrow_enough

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
    ("run", "rounds", "seconds_left", "others", "complete"),
    [
        (0, SHARE - 1, -1.0, [STEADY], False),
        (0, SHARE, -1.0, [SHAKY], True),
        (0, SHARE, 1.0, [STEADY], False),
        (RUNS - 1, SHARE - 1, -1.0, [STEADY], False),
        (RUNS - 1, SHARE, 1.0, [STEADY], True),
        (RUNS - 1, SHARE, 1.0, [STEADY, SHAKY], False),
        (RUNS - 1, SHARE, -1.0, [STEADY, SHAKY], True),
    ],
)
def test_a_run_ends(
    run: int, rounds: int, seconds_left: float, others: list[Any], complete: bool
) -> None:
    assert is_run_complete(run, rounds, seconds_left, BASELINE, others, 0.05) is complete


def test_without_a_baseline_only_time_ends_a_run() -> None:
    assert not is_run_complete(RUNS - 1, SHARE, 1.0, None, [STEADY], 0.05)
    assert is_run_complete(RUNS - 1, SHARE, -1.0, None, [STEADY], 0.05)
