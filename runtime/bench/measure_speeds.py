"""The measurement of which CPU engine runs a bundle's graph fastest here, for `auto`.

Each engine has a process of its own, because the thread pools of two engines in one process disturb
each other by busy waiting. The processes take turns, and each checks golden images before.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np

from resdeploy.benchmark_process.worker_process import Contender, Worker
from resdeploy.benchmark_process.workload import Workload
from resdeploy.bundle.bundle import Bundle
from resdeploy.errors import ResdeployError
from resdeploy.progress import Progress
from resdeploy.runtime.backends.base import AUTO
from resdeploy.runtime.backends.engine_speeds import (
    EngineSpeeds,
    SpeedKey,
    read_speeds,
    speed_key,
    store_speeds,
)
from resdeploy.runtime.backends.registry import candidates
from resdeploy.runtime.bench.rounds import run_round

logger = logging.getLogger(__name__)

# With 9 rounds, an engine may lose one of them to noise and still be the faster one by a sign test
# at 5 %. Five rounds are the fewest that can decide: 0.5 ** 5 is 3 %.
ROUNDS = 9
MIN_ROUNDS = 5
TURN_SECONDS = 0.1
SECONDS = 5.0
"""Time after which only `MIN_ROUNDS` are completed."""
START_SECONDS = 60.0
"""Time limit for the start of one process."""


def find_speeds(
    bundle: Bundle,
    backend: str,
    precision: str,
    threads: int | None,
    progress: Progress,
    *,
    again: bool = False,
) -> EngineSpeeds | None:
    """Return the engines' speeds from the cache; measure and store them if it has none.

    Return None if there is no choice between engines, or if one of them does not run. With `again`,
    the stored speeds are replaced.

    Raises:
        BackendError: No selected backend can run here.
    """
    selected = candidates(bundle, backend, precision)
    key = speed_key(selected, threads) if backend == AUTO else None
    if key is None:
        return None
    if not again and (known := read_speeds(key)):
        return known
    measured = measure_speeds(bundle, key, progress)
    if measured:
        store_speeds(measured)
    return measured


def measure_speeds(
    bundle: Bundle,
    key: SpeedKey,
    progress: Progress,
    clock: Callable[[], float] = time.monotonic,
) -> EngineSpeeds | None:
    """Time single images on every engine of `key`; return None if one of them does not run."""
    workload = Workload(bundle=bundle.path, batch=1, threads=key.threads).to_arguments()
    with ExitStack() as stack, progress("measuring the engines", ROUNDS) as advance:
        contenders: list[Contender] = []
        rounds: list[list[float]] = []
        for name in key.engines:
            try:
                contender = Contender.start(
                    name, Worker.RUNTIME, (name, key.artifact, *workload), key.threads,
                    START_SECONDS, favoured=False,
                )  # fmt: skip
            except (OSError, ResdeployError) as error:
                logger.warning("the engines are not compared: %s cannot run: %s", name, error)
                return None
            stack.callback(contender.stop)
            contenders.append(contender)
        generator = random.Random(0)
        end = clock() + SECONDS
        while len(rounds) < MIN_ROUNDS + 1 or (len(rounds) < ROUNDS + 1 and clock() < end):
            try:
                turns = run_round(contenders, TURN_SECONDS, generator)
            except ResdeployError as error:
                logger.warning("the engines are not compared: %s", error)
                return None
            rounds.append([float(np.median(times)) for times in turns])
            advance(1)
    # The first round warms the engines up.
    speeds = EngineSpeeds(key=key, round_ms=dict(zip(key.engines, zip(*rounds[1:]))))
    logger.info("%s", speeds)
    return speeds
