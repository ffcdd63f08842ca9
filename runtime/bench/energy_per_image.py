"""The energy that one image costs above the idle power of the machine, with its interval."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from resdeploy.benchmark_process.worker_process import Contender
from resdeploy.progress import Progress, silent
from resdeploy.result_files.benchmark import ImageEnergy
from resdeploy.runtime.energy.meter import Meter
from resdeploy.runtime.energy.source import PowerSource
from resdeploy.statistics import student_975

ROUNDS = 5
LEAD_SECONDS = 0.5
"""The time before a window that is not measured, as readings also average over earlier load."""
WINDOW_SECONDS = 1.0
IDLE_WINDOWS = 8
IDLE_WINDOW_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class EnergyRound:
    """The power and speed of one contender in one round."""

    watts: float
    ms_per_image: float


def idle_power(source: PowerSource) -> list[float]:
    """Measure the power of the idle machine in watts, one value for each complete window."""
    with Meter(source) as meter:
        time.sleep(LEAD_SECONDS)
        start = time.perf_counter()
        time.sleep(IDLE_WINDOWS * IDLE_WINDOW_SECONDS)
    edges = [start + number * IDLE_WINDOW_SECONDS for number in range(IDLE_WINDOWS + 1)]
    trace = meter.trace()
    energies = [trace.energy(*window) for window in pairwise(edges)]
    return [joules / IDLE_WINDOW_SECONDS for joules in energies if joules is not None]


def measure_rounds(
    contenders: Sequence[Contender],
    sources: Sequence[PowerSource],
    batch: int,
    progress: Progress = silent,
) -> list[list[list[EnergyRound]]]:
    """Let the contenders run in turns; return the fully measured rounds by source and contender."""
    windows: list[list[tuple[float, float, float]]] = [[] for _ in contenders]
    with ExitStack() as stack, progress("measuring energy", ROUNDS) as advance:
        meters = [stack.enter_context(Meter(source)) for source in sources]
        for _ in range(ROUNDS):
            for contender, contender_windows in zip(contenders, windows):
                start = time.perf_counter()
                times = contender.run_for(LEAD_SECONDS + WINDOW_SECONDS)
                end = time.perf_counter()
                measured = times[np.cumsum(times) > 1000 * LEAD_SECONDS]
                ms_per_image = float(measured.mean()) / batch
                contender_windows.append((start + LEAD_SECONDS, end, ms_per_image))
            advance(1)
    return [
        [
            [
                EnergyRound(joules / (end - start), ms)
                for start, end, ms in contender_windows
                if (joules := trace.energy(start, end)) is not None
            ]
            for contender_windows in windows
        ]
        for trace in [meter.trace() for meter in meters]
    ]


def energy_per_image(
    source: PowerSource, idle: Sequence[float], rounds: Sequence[EnergyRound]
) -> ImageEnergy | None:
    """Return the energy of one image; None with fewer than two idle windows or two rounds.

    `idle` is in watts. The interval is Student's, from the variances of the rounds and of `idle`.
    """
    if len(idle) < 2 or len(rounds) < 2:
        return None
    idle_watts = float(np.mean(idle))
    milliseconds = float(np.mean([round.ms_per_image for round in rounds]))
    above_idle_mj = [(round.watts - idle_watts) * round.ms_per_image for round in rounds]
    variance = np.var(above_idle_mj, ddof=1) / len(above_idle_mj)
    variance += milliseconds**2 * np.var(idle, ddof=1) / len(idle)
    mean_mj = float(np.mean(above_idle_mj))
    margin = student_975(len(above_idle_mj) - 1) * float(np.sqrt(variance))
    return ImageEnergy(
        source=source.name,
        scope=source.scope,
        mj_per_image=mean_mj,
        mj_low=mean_mj - margin,
        mj_high=mean_mj + margin,
        total_mj_per_image=float(np.mean([round.watts * round.ms_per_image for round in rounds])),
        watts=float(np.mean([round.watts for round in rounds])),
        idle_watts=idle_watts,
        rounds=len(rounds),
    )
