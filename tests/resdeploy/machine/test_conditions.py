"""Notices about the conditions before and after a benchmark."""

from __future__ import annotations

from dataclasses import replace

import pytest

from resdeploy.machine.conditions import Clock, Conditions, PowerMode, notices
from resdeploy.machine.nvml import Gpu

BEST = Conditions(
    power_mode=PowerMode("MAXN", 0),
    fastest_mode=PowerMode("MAXN", 0),
    gpu_clock=Clock(1300.5, 1300.5, 1300.5),
    temperature_c=60.0,
    throttle_count=3,
)


def test_best_and_unknown_conditions_give_no_notice() -> None:
    assert notices(BEST, BEST) == ()
    assert notices(Conditions(), Conditions()) == ()


@pytest.mark.parametrize(
    ("before", "after", "notice"),
    [
        (replace(BEST, power_mode=PowerMode("15W", 1)),) * 2 + ("is 15W; MAXN is faster",),
        (
            BEST,
            replace(BEST, power_mode=PowerMode("15W", 1)),
            "the power mode changed to 15W during the run",
        ),
        (replace(BEST, gpu_clock=Clock(300, 300, 1300)), BEST, "jetson_clocks is off"),
        (BEST, replace(BEST, throttle_count=10), "heat or current reduced the clocks 7 times"),
        (BEST, replace(BEST, cooling=("gpu-throttle",)), "heat reduces the clocks: gpu-throttle"),
        (BEST, replace(BEST, temperature_c=96.2), "96 C, close to the limit"),
    ],
)
def test_notices_about_a_board(before: Conditions, after: Conditions, notice: str) -> None:
    (found,) = notices(before, after)
    assert notice in found


def test_notices_about_a_gpu() -> None:
    gpus = (Gpu(name="H100"), Gpu(name="A10", throttled_by=("temperature",)))
    found = notices(Conditions(), Conditions(), gpus)
    assert found == ("the clock of A10 is reduced: temperature",)
