"""The rule that ends the runs of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence

from resdeploy.benchmark_process.worker_process import Rounds
from resdeploy.runtime.bench.rounds import MIN_ROUNDS, speedup

RUNS = 5


def is_run_complete(
    run: int,
    rounds: int,
    seconds_left: float,
    baseline: Sequence[Rounds] | None,
    others: Sequence[Sequence[Rounds]],
    within: float,
) -> bool:
    """Return True if a run needs no further round.

    A run has at least its share of `MIN_ROUNDS`. After that it ends when its time is over. The last
    run also ends when the interval of every speed-up is narrow enough.

    Args:
        run: The index of the run, from 0 to `RUNS` - 1.
        rounds: The number of rounds that the run has had.
        seconds_left: The time that the run has left.
        baseline: The rounds of the baseline in each run; None without a baseline.
        others: The rounds of each other contender in each run.
        within: The largest width of a narrow interval, as a share of its speed-up.
    """
    if rounds < max(MIN_ROUNDS // RUNS, 1):
        return False
    if seconds_left < 0:
        return True
    return run == RUNS - 1 and baseline is not None and narrow_enough(baseline, others, within)


def narrow_enough(
    baseline: Sequence[Rounds], others: Sequence[Sequence[Rounds]], within: float
) -> bool:
    """Return True if the width of every speed-up's interval is at most `within` * speed-up."""
    intervals = [speedup(baseline, contender) for contender in others]
    return all(high - low <= within * centre for centre, low, high in intervals)
