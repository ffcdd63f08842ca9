"""Contenders of a benchmark that take turns in one process each, without restarts."""

from __future__ import annotations

import random
from collections.abc import Sequence

from resdeploy.benchmark_process.worker_process import Contender, Rounds
from resdeploy.progress import Progress
from resdeploy.runtime.bench.rounds import plan_rounds, run_round, warm_up


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
