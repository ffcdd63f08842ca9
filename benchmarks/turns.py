"""Contenders of a benchmark that take turns in one process each, and the machine's ceilings."""

from __future__ import annotations

import random
from collections.abc import Sequence

from resdeploy.benchmark_process.ceilings import best_ceilings
from resdeploy.benchmark_process.roofline import Ceilings
from resdeploy.benchmark_process.worker_process import Contender, Rounds, Worker
from resdeploy.machine.device import available_cores
from resdeploy.progress import Progress
from resdeploy.runtime.bench.rounds import plan_rounds, run_round, warm_up

CEILING_SECONDS = 10.0  # the clocks of a GPU need some tenths of a second to rise


def measure_ceilings() -> Ceilings | None:
    """Return the highest rates that PyTorch reaches here, on a GPU if there is one."""
    threads = available_cores()
    child = Contender.start("ceilings", Worker.PYTORCH_CEILINGS, [str(threads)], threads)
    try:
        child.run_for(CEILING_SECONDS)
    finally:
        child.stop()
    return best_ceilings([child.stages])


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
