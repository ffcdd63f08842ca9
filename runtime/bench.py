"""How much faster than PyTorch? Every backend here against it, in turns, in one run.

A noisy machine slows whole rounds, not contenders: each round runs every contender once, in random
order, and the speed-up is taken within rounds.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from resdeploy.bundle import Bundle, Encoding, Precision
from resdeploy.contender import Contender
from resdeploy.errors import BackendError, ResdeployError
from resdeploy.progress import Progress, silent
from resdeploy.provenance import collect_provenance
from resdeploy.runtime import onnxruntime_cpu
from resdeploy.runtime.conditions import notices
from resdeploy.runtime.device import available_cores, read_device
from resdeploy.runtime.energy.meter import find_sources
from resdeploy.runtime.energy.per_image import (
    ImageEnergy,
    energy_per_image,
    idle_power,
    run_rounds,
)
from resdeploy.runtime.energy.source import PowerSource, Scope
from resdeploy.runtime.host import Host
from resdeploy.runtime.selection import AUTO, Candidate, candidates
from resdeploy.statistics import ratio_interval

logger = logging.getLogger(__name__)

ROUNDS = 15
WARM_UP_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A contender before it is started."""

    name: str
    precision: Precision
    encoding: Encoding
    module: str
    arguments: tuple[str, ...]
    runs_on: Scope = Scope.CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What one contender took; the speed-ups are None where there is no baseline."""

    contender: str
    precision: Precision
    encoding: Encoding
    batch: int
    threads: int
    runs: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    images_per_second: float
    speedup: float | None
    """Against the first contender: median over rounds of its time divided by this one's."""
    speedup_low: float | None
    """Lower end of the 95 % bootstrap interval."""
    speedup_high: float | None
    energy: ImageEnergy | None
    """None where nothing that measures it can be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """What `resdeploy bench` measured."""

    environment: dict[str, Any]
    results: tuple[Timing, ...]
    notices: tuple[str, ...]
    """What made it slower than it could be, or may have."""


def best_candidates(bundle: Bundle, backend: str = AUTO) -> list[Candidate]:
    """The best artifact of each precision on every backend that is installed here.

    Raises:
        BackendError: see `selection.candidates`.
    """
    best: dict[tuple[str, Precision], Candidate] = {}
    for candidate in candidates(bundle, backend):
        best.setdefault((candidate.engine.name, candidate.artifact.precision), candidate)
    order = list(Precision)
    return sorted(best.values(), key=lambda c: (c.engine.name, order.index(c.artifact.precision)))


def backend_entries(bundle: Bundle, batch: int, threads: int) -> list[Entry]:
    """The contenders that the runtime itself brings."""
    return [
        Entry(
            name=candidate.engine.name,
            precision=candidate.artifact.precision,
            encoding=candidate.artifact.encoding,
            module="resdeploy.runtime.contender",
            arguments=(
                str(bundle.path), candidate.engine.name, candidate.artifact.name,
                str(batch), str(threads),
            ),
            runs_on=Scope.CPU if candidate.engine.name == onnxruntime_cpu.NAME else Scope.GPU,
        )
        for candidate in best_candidates(bundle)
    ]  # fmt: skip


def baseline_entry(bundle: Bundle, checkpoint: Path | None, batch: int, threads: int) -> Entry:
    """PyTorch eager in FP32. Named as text: the runtime never imports what needs torch."""
    return Entry(
        name="pytorch-eager",
        precision=Precision.FP32,
        encoding=Encoding.FLOAT,
        module="resdeploy.train.contender",
        arguments=(str(bundle.path), str(checkpoint or ""), str(batch), str(threads)),
    )


def run_benchmark(
    bundle: Bundle,
    *,
    checkpoint: Path | None = None,
    batch: int = 1,
    threads: int | None = None,
    seconds: float = 3.0,
    progress: Progress = silent,
    host: Host | None = None,
) -> Benchmark:
    """Time PyTorch eager, and every backend here, on golden images that are already in memory.

    Args:
        bundle: The bundle.
        checkpoint: Weights for PyTorch; None for those that the bundle was exported from.
            Where PyTorch is not installed, there are no speed-ups.
        batch: Images in one run.
        threads: Threads of every contender; None for one per core.
        seconds: Time for each contender, warm-up not counted; energy takes its own time.
        progress: Told of each round.
        host: Where the machine's sensors are; None for this one.

    Raises:
        BackendError: not one contender could start, or not with `checkpoint`.
    """
    threads = threads or available_cores()
    baseline = baseline_entry(bundle, checkpoint, batch, threads)
    entries = [baseline, *backend_entries(bundle, batch, threads)]
    contenders: list[tuple[Entry, Contender]] = []
    host = host or Host()
    sources = find_sources(host)
    try:
        for entry in entries:
            try:
                started = Contender.start(entry.name, entry.module, list(entry.arguments), threads)
                contenders.append((entry, started))
            except ResdeployError as error:
                if entry is baseline and checkpoint is not None:
                    raise  # it was asked for
                logger.warning("%s is left out: %s (%s)", entry.name, error, error.hint)
        if not contenders:
            raise BackendError("not one contender could start", "see the warnings above")
        running = [contender for _, contender in contenders]
        before = read_device(host)
        idle = [idle_power(source) for source in sources]
        times = interleave(running, seconds, progress)
        after = read_device(host)  # while it is still warm
        energies = _energies(contenders, sources, idle, batch, progress)
    finally:
        for _, contender in contenders:
            contender.stop()
        for source in sources:
            source.close()
    has_baseline = contenders[0][0] is baseline
    return Benchmark(
        environment={
            **collect_provenance(),
            "device": before.to_json(),
            "rounds": ROUNDS,
            "seconds": seconds,
            "image_size": bundle.manifest.preprocessing.image_size,
            "model": bundle.manifest.model["name"],
            "baseline": contenders[0][1].facts if has_baseline else None,
        },
        results=tuple(
            _summarise(entry, measured, times[0] if has_baseline else None, batch, threads, energy)
            for (entry, _), measured, energy in zip(contenders, times, energies)
        ),
        notices=notices(before.conditions, after.conditions, after.gpus),
    )


def _energies(
    contenders: Sequence[tuple[Entry, Contender]],
    sources: Sequence[PowerSource],
    idle: Sequence[list[float]],
    batch: int,
    progress: Progress,
) -> list[ImageEnergy | None]:
    """Of each contender, by the first source that sees what it does."""
    if not sources:
        return [None] * len(contenders)
    rounds = run_rounds([contender for _, contender in contenders], sources, batch, progress)
    return [
        next(
            (
                energy_per_image(source, watts, seen[index])
                for source, watts, seen in zip(sources, idle, rounds)
                if source.scope.covers(entry.runs_on)
            ),
            None,
        )
        for index, (entry, _) in enumerate(contenders)
    ]


Rounds = list[npt.NDArray[np.float64]]
"""Times of single runs in milliseconds, one array a round."""


def interleave(contenders: Sequence[Contender], seconds: float, progress: Progress) -> list[Rounds]:
    """Let contenders run in turns, each for `seconds` in all, warm-up not counted.

    Raises:
        BackendError: one of them ended early.
    """
    times: list[Rounds] = [[] for _ in contenders]
    order = list(range(len(contenders)))
    generator = random.Random(0)
    with progress("benchmarking", ROUNDS + 1) as advance:
        for contender in contenders:
            contender.run_for(WARM_UP_SECONDS)
        advance(1)
        for _ in range(ROUNDS):
            generator.shuffle(order)
            for index in order:
                times[index].append(contenders[index].run_for(seconds / ROUNDS))
            advance(1)
    return times


def _summarise(
    entry: Entry,
    rounds: Rounds,
    baseline: Rounds | None,
    batch: int,
    threads: int,
    energy: ImageEnergy | None,
) -> Timing:
    pooled = np.concatenate(rounds)
    p50, p90, p99 = np.percentile(pooled, [50, 90, 99])
    speedup = low = high = None
    if baseline is not None:
        speedup, low, high = ratio_interval(medians(baseline), medians(rounds))
    return Timing(
        contender=entry.name,
        precision=entry.precision,
        encoding=entry.encoding,
        batch=batch,
        threads=threads,
        runs=len(pooled),
        p50_ms=float(p50),
        p90_ms=float(p90),
        p99_ms=float(p99),
        images_per_second=float(1000 * batch * len(pooled) / pooled.sum()),
        speedup=speedup,
        speedup_low=low,
        speedup_high=high,
        energy=energy,
    )


def medians(rounds: Rounds) -> npt.NDArray[np.float64]:
    """Of each round, in milliseconds: what `ratio_interval` takes."""
    return np.array([np.median(times) for times in rounds])
