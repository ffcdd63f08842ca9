"""The number of runs of a benchmark, and the rule that ends each of them."""

from __future__ import annotations

from collections.abc import Sequence

from resdeploy.benchmark_process.worker_process import Rounds
from resdeploy.runtime.bench.rounds import MIN_ROUNDS, speedup

RUNS, MIN_RUNS = 5, 3
"""The runs without a time limit, and the fewest; Student's interval of two would be useless."""


def plan_runs(seconds: float, seconds_left: float, restart_seconds: float) -> tuple[int, float]:
    """Return the number of runs, and the measuring time of each in seconds, that fit in the time.

    Fewer runs take place if restarts would take more than half of the time. The number depends on
    the time alone: ending because the intervals are narrow would favour those that are by chance.

    Args:
        seconds: The measuring time of all runs together, if there is enough time.
        seconds_left: The time for measuring and restarts; may be negative.
        restart_seconds: The time between two runs, for starts and warm-up.
    """
    runs = RUNS
    while runs > MIN_RUNS and (runs - 1) * restart_seconds > seconds_left / 2:
        runs -= 1
    return runs, min(seconds, max(seconds_left - (runs - 1) * restart_seconds, 0.0)) / runs


def is_run_complete(
    rounds: int,
    seconds_left: float,
    baseline: Sequence[Rounds] | None,
    others: Sequence[Sequence[Rounds]],
    within: float,
    *,
    is_last: bool,
) -> bool:
    """Return True if a run needs no further round.

    A run has at least its share of `MIN_ROUNDS`. After that it ends when its time is over. The last
    run also ends when the interval of every speed-up is narrow enough.

    Args:
        rounds: The number of rounds that the run has had.
        seconds_left: The time that the run has left.
        baseline: The rounds of the baseline in each run; None without a baseline.
        others: The rounds of each other contender in each run.
        within: The largest width of a narrow interval, as a share of its speed-up.
        is_last: True for the last run.
    """
    if rounds < max(MIN_ROUNDS // RUNS, 1):
        return False
    if seconds_left < 0:
        return True
    return is_last and baseline is not None and narrow_enough(baseline, others, within)


def narrow_enough(
    baseline: Sequence[Rounds], others: Sequence[Sequence[Rounds]], within: float
) -> bool:
    """Return True if the interval of every speed-up is at most `within` of it wide."""
    return all(relative_width(*speedup(baseline, other)) <= within for other in others)


def relative_width(speedup: float, low: float, high: float) -> float:
    """Return the width of a speed-up's interval as a share of the speed-up."""
    return (high - low) / speedup
