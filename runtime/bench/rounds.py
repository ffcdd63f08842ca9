"""The rounds of a benchmark: turns of all contenders, and when the intervals are narrow enough.

A noisy machine slows whole rounds, not single contenders. Therefore each round gives every
contender one turn, in random order, and ratios are taken within rounds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from resdeploy.bench.process import Contender, Rounds
from resdeploy.progress import Progress
from resdeploy.statistics import repeated_ratio_interval

MIN_ROUNDS = 15
"""The least number of rounds in all runs."""
TURN_SECONDS = 0.2
"""The longest turn if it allows more rounds than `MIN_ROUNDS`: noise changes within seconds."""
WARM_UP_SECONDS = 0.2
MAX_WARM_UPS = 10
STABLE_WITHIN = 0.05
"""The largest relative difference of two turns that ends the warm-up."""


@dataclass(frozen=True, slots=True)
class Speedup:
    """The speed-up against the baseline, with its 95 % confidence interval."""

    centre: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """The width of the interval as a share of its centre."""
        return (self.high - self.low) / self.centre


def plan_rounds(seconds: float) -> tuple[int, float]:
    """Return the number of rounds and the seconds of one turn for `seconds` per contender."""
    rounds = max(MIN_ROUNDS, math.ceil(seconds / TURN_SECONDS))
    return rounds, seconds / rounds


def interleave(contenders: Sequence[Contender], seconds: float, progress: Progress) -> list[Rounds]:
    """Warm the contenders up, then let each run for `seconds` in rounds.

    Raises:
        BackendError: A contender ended early.
    """
    times: list[Rounds] = [[] for _ in contenders]
    generator = random.Random(0)
    rounds, turn = plan_rounds(seconds)
    with progress("benchmarking", rounds + 1) as advance:
        for contender in contenders:
            warm_up(contender)
        advance(1)
        for _ in range(rounds):
            for turn_times, all_times in zip(run_round(contenders, turn, generator), times):
                all_times.append(turn_times)
            advance(1)
    return times


def run_round(contenders: Sequence[Contender], turn: float, generator: random.Random) -> Rounds:
    """Give each contender one turn of `turn` seconds in random order; return their times."""
    order = list(range(len(contenders)))
    generator.shuffle(order)
    times = {index: contenders[index].run_for(turn) for index in order}
    return [times[index] for index in range(len(contenders))]


def warm_up(contender: Contender) -> bool:
    """Let a contender run until two turns in a row differ by less than `STABLE_WITHIN`.

    Returns:
        True if its times became stable within `MAX_WARM_UPS` turns.
    """
    last = math.inf
    for _ in range(MAX_WARM_UPS):
        now = float(np.median(contender.run_for(WARM_UP_SECONDS)))
        if abs(now - last) <= STABLE_WITHIN * now:
            return True
        last = now
    return False


def medians(rounds: Rounds) -> npt.NDArray[np.float64]:
    """Return the median of each round in milliseconds."""
    return np.array([np.median(times) for times in rounds])


def speedup(baseline: Sequence[Rounds], runs: Sequence[Rounds]) -> Speedup:
    """Return the speed-up of a contender from runs that the baseline took part in."""
    return Speedup(
        *repeated_ratio_interval(
            [medians(rounds) for rounds in baseline], [medians(rounds) for rounds in runs]
        )
    )


def narrow_enough(
    baseline: Sequence[Rounds], others: Sequence[Sequence[Rounds]], within: float
) -> bool:
    """Return True if the relative width of every speed-up's interval is at most `within`."""
    return all(speedup(baseline, runs).width <= within for runs in others)
