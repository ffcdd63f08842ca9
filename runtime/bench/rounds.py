"""Contenders that take turns, and when that has gone on for long enough.

A noisy machine slows whole rounds, not contenders: each round runs every contender once, in random
order, and ratios are taken within rounds.
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

ROUNDS = 15
"""At least, over all runs."""
SLICE_SECONDS = 0.2
"""A turn is no longer where more rounds fit: noise comes and goes within seconds."""
WARM_UP_SECONDS = 0.2
MOST_WARM_UPS = 10
STABLE_WITHIN = 0.05


@dataclass(frozen=True, slots=True)
class Speedup:
    """How many times faster than the baseline, and its 95 % interval."""

    centre: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Of the interval, as a share of its centre."""
        return (self.high - self.low) / self.centre


def turns(seconds: float) -> tuple[int, float]:
    """How many rounds make `seconds` for each contender, and the seconds of one turn."""
    rounds = max(ROUNDS, math.ceil(seconds / SLICE_SECONDS))
    return rounds, seconds / rounds


def interleave(contenders: Sequence[Contender], seconds: float, progress: Progress) -> list[Rounds]:
    """Let contenders run in turns, each for `seconds` in all, warm-up not counted.

    Raises:
        BackendError: one of them ended early.
    """
    times: list[Rounds] = [[] for _ in contenders]
    generator = random.Random(0)
    rounds, turn = turns(seconds)
    with progress("benchmarking", rounds + 1) as advance:
        for contender in contenders:
            warm_up(contender)
        advance(1)
        for _ in range(rounds):
            for lap, seen in zip(run_round(contenders, turn, generator), times):
                seen.append(lap)
            advance(1)
    return times


def run_round(contenders: Sequence[Contender], turn: float, generator: random.Random) -> Rounds:
    """One turn of `turn` seconds each, in random order: the times of each."""
    order = list(range(len(contenders)))
    generator.shuffle(order)
    laps = {index: contenders[index].run_for(turn) for index in order}
    return [laps[index] for index in range(len(contenders))]


def warm_up(contender: Contender) -> bool:
    """Run until two turns in a row take the same time, to `STABLE_WITHIN`.

    Returns:
        Whether they did, within `MOST_WARM_UPS` turns.
    """
    last = math.inf
    for _ in range(MOST_WARM_UPS):
        now = float(np.median(contender.run_for(WARM_UP_SECONDS)))
        if abs(now - last) <= STABLE_WITHIN * now:
            break
        last = now
    else:
        return False
    return True


def medians(rounds: Rounds) -> npt.NDArray[np.float64]:
    """Of each round, in milliseconds: what `ratio_interval` takes."""
    return np.array([np.median(times) for times in rounds])


def speedup(baseline: Sequence[Rounds], runs: Sequence[Rounds]) -> Speedup:
    """Of one contender, from runs that both took part in."""
    return Speedup(
        *repeated_ratio_interval(
            [medians(rounds) for rounds in baseline], [medians(rounds) for rounds in runs]
        )
    )


def narrow_enough(
    baseline: Sequence[Rounds], others: Sequence[Sequence[Rounds]], within: float
) -> bool:
    """Whether every speed-up is known to `within` of itself."""
    return all(speedup(baseline, runs).width <= within for runs in others)
