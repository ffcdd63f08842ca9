"""What two looks at a machine tell of the time between."""

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


def test_a_board_at_its_best_and_a_machine_that_tells_nothing_need_no_notice() -> None:
    assert notices(BEST, BEST) == ()
    assert notices(Conditions(), Conditions()) == ()


@pytest.mark.parametrize(
    ("before", "after", "notice"),
    [
        (replace(BEST, power_mode=PowerMode("15W", 1)),) * 2 + ("power mode 15W, not MAXN",),
        (
            BEST,
            replace(BEST, power_mode=PowerMode("15W", 1)),
            "the power mode changed to 15W meanwhile",
        ),
        (replace(BEST, gpu_clock=Clock(300, 300, 1300)), BEST, "jetson_clocks is off"),
        (BEST, replace(BEST, throttle_count=10), "heat or current reduced the clocks 7 times meanwhile"),
        (BEST, replace(BEST, cooling=("gpu-throttle",)), "against heat: gpu-throttle"),
        (BEST, replace(BEST, temperature_c=96.2), "96 C: close to where clocks are reduced"),
    ],
)
def test_what_slowed_a_board(before: Conditions, after: Conditions, notice: str) -> None:
    (found,) = notices(before, after)
    assert notice in found


def test_what_slowed_a_gpu() -> None:
    gpus = (Gpu(name="H100"), Gpu(name="A10", throttled_by=("temperature",)))
    assert notices(Conditions(), Conditions(), gpus) == ("A10 is held back: temperature",)
