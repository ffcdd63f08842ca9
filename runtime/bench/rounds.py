"""The rounds of a benchmark, in which all contenders take turns, and the speed-ups from them.

A noisy machine slows whole rounds, not single contenders. Therefore each round gives every
contender one turn, in random order, and ratios are taken within rounds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from resdeploy.benchmark_process.worker_process import Contender, Rounds
from resdeploy.statistics import repeated_ratio_interval

MIN_ROUNDS = 15
"""The least number of rounds in all runs together."""
TURN_SECONDS = 0.2
"""The longest planned turn; turns are short because noise changes within seconds."""
WARM_UP_SECONDS = 0.2
MAX_WARM_UPS = 10
STABLE_WITHIN = 0.05
"""The largest relative difference of two turns that ends the warm-up."""


def plan_rounds(seconds: float) -> tuple[int, float]:
    """Return the number of rounds and the seconds of one turn for `seconds` per contender."""
    rounds = max(MIN_ROUNDS, math.ceil(seconds / TURN_SECONDS))
    return rounds, seconds / rounds


def run_round(contenders: Sequence[Contender], turn: float, generator: random.Random) -> Rounds:
    """Give each contender one turn of `turn` seconds in random order; return their times."""
    order = list(range(len(contenders)))
    generator.shuffle(order)
    times = {index: contenders[index].run_for(turn) for index in order}
    return [times[index] for index in range(len(contenders))]


def warm_up(contender: Contender) -> bool:
    """Let a contender run until two turns in a row differ by at most `STABLE_WITHIN`.

    Returns:
        True if this happened within `MAX_WARM_UPS` turns.
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


def speedup(baseline: Sequence[Rounds], contender: Sequence[Rounds]) -> tuple[float, float, float]:
    """Return the speed-up against the baseline and the ends of its 95 % confidence interval.

    Args:
        baseline: The rounds of each run.
        contender: The rounds of the same runs.
    """
    first, second = ([medians(rounds) for rounds in runs] for runs in (baseline, contender))
    return repeated_ratio_interval(first, second)
