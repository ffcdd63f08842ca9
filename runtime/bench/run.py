"""How much faster than PyTorch? Every backend here against it, in turns, in one run.

The run is made of a few runs, each with processes of its own: where its memory lies makes one
process a little faster than the next, and minutes differ: an interval must know of that. Every
start is timed, too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from resdeploy.bench.ceilings import ceilings_of
from resdeploy.bench.workload import DEFAULT_BATCH, Mode, Workload, write_pictures
from resdeploy.bundle.bundle import Bundle
from resdeploy.machine.conditions import notices
from resdeploy.machine.device import Device, Scope, available_cores, read_device
from resdeploy.machine.host import Host
from resdeploy.progress import Progress, silent
from resdeploy.results.benchmark import Benchmark, ImageEnergy
from resdeploy.results.provenance import collect_provenance
from resdeploy.runtime.bench.contenders import BASELINE, CEILINGS, ceiling_entries, list_contenders
from resdeploy.runtime.bench.energy_per_image import energy_per_image, idle_power, run_rounds
from resdeploy.runtime.bench.runner import (
    ContenderRunner,
    baseline_of,
    run_contenders,
    start_all,
    stop_all,
    timed_runners,
)
from resdeploy.runtime.bench.summary import summarise
from resdeploy.runtime.energy.meter import find_sources
from resdeploy.runtime.energy.source import PowerSource


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkConfig:
    """What to measure, and for how long."""

    mode: Mode = Mode.STREAM
    batch: int | None = None
    """Images in one run; None for the mode's usual number."""
    threads: int | None = None
    """Of every contender; None for one per core."""
    seconds: float = 15.0
    """At most, for each contender; starts, warm-up and energy take their own time."""
    within: float = 0.05
    """The run ends earlier where the interval of every speed-up is narrower than this share."""
    checkpoint: Path | None = None
    """Weights for PyTorch; None for those that the bundle was exported from."""
    pictures: Path | None = None
    """Files to begin with, end to end; None for the golden images as JPEG."""
    also: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    """Names of contenders; see `list_contenders.NAMES`."""


def run_benchmark(
    bundle: Bundle,
    config: BenchmarkConfig = BenchmarkConfig(),
    *,
    progress: Progress = silent,
    host: Host | None = None,
) -> Benchmark:
    """Time PyTorch, and every backend here, in turns.

    Args:
        bundle: The bundle.
        config: What, and for how long.
        progress: Told of each round.
        host: Where the machine's sensors are; None for this one.

    Raises:
        BackendError: not one contender could start, or not with the checkpoint that was asked for.
        DataError: there are no pictures where they were asked for.
    """
    host = host or Host()
    threads = config.threads or available_cores()
    batch = config.batch or DEFAULT_BATCH[config.mode]
    sources = find_sources(host)
    with ExitStack() as stack:
        for source in sources:
            stack.callback(source.close)
        pictures = _pictures(bundle, config, stack)
        workload = Workload(bundle=bundle.path, batch=batch, threads=threads, pictures=pictures)
        entries = list_contenders(
            bundle, workload,
            checkpoint=config.checkpoint, also=config.also, without=config.without,
        )  # fmt: skip
        if CEILINGS not in config.without:
            entries += ceiling_entries(threads)
        needed = BASELINE if config.checkpoint else None
        runners = start_all(entries, threads, needed=needed)
        stack.callback(stop_all, runners)
        before = read_device(host)
        idle = [idle_power(source) for source in sources]
        run_contenders(
            runners, threads, seconds=config.seconds, within=config.within, nvml=host.nvml(),
            progress=progress,
        )  # fmt: skip
        after = read_device(host)  # while it is still warm
        energies = _energies(timed_runners(runners), sources, idle, batch, progress)
    return _benchmark(bundle, config, workload, runners, energies, before, after)


def _benchmark(
    bundle: Bundle,
    config: BenchmarkConfig,
    workload: Workload,
    runners: Sequence[ContenderRunner],
    energies: Sequence[ImageEnergy | None],
    before: Device,
    after: Device,
) -> Benchmark:
    measuring = [runner for runner in runners if runner.entry.name == CEILINGS]
    ceilings = {
        place: ceilings_of([runner.stages for runner in measuring if runner.entry.runs_on is place])
        for place in (Scope.GPU, Scope.CPU)
    }
    baseline = baseline_of(runners)
    work = bundle.manifest.work
    return Benchmark(
        environment={
            **collect_provenance(before.to_json()),
            "mode": config.mode.value,
            "rounds": len(runners[0].times),
            "runs": [len(run) for run in runners[0].runs],
            "seconds": config.seconds,
            "within": config.within,
            "high_priority": all(runner.high_priority for runner in runners),
            "image_size": bundle.manifest.preprocessing.image_size,
            "model": bundle.manifest.model["name"],
            "baseline": baseline and {key: baseline.facts[key] for key in ("weights", "device")},
        },
        work=work.totals() if work else None,
        ceilings=ceilings[Scope.GPU] or ceilings[Scope.CPU],
        notices=(
            *notices(before.conditions, after.conditions, after.gpus),
            *(
                f"{runner.entry.label} had not stable when it was timed"
                for runner in timed_runners(runners)
                if not runner.stable
            ),
        ),
        results=tuple(
            summarise(runner, baseline, work, ceilings.get(runner.entry.runs_on), workload, energy)
            for runner, energy in zip(timed_runners(runners), energies)
        ),
    )


def _pictures(bundle: Bundle, config: BenchmarkConfig, stack: ExitStack) -> Path | None:
    """The folder to begin with, where a run begins with files."""
    if config.mode is not Mode.END_TO_END:
        return None
    if config.pictures is not None:
        return config.pictures.resolve()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    write_pictures(bundle, folder)
    return folder


def _energies(
    runners: Sequence[ContenderRunner],
    sources: Sequence[PowerSource],
    idle: Sequence[list[float]],
    batch: int,
    progress: Progress,
) -> list[ImageEnergy | None]:
    """Of each contender, by the first source that sees what it does."""
    if not sources:
        return [None] * len(runners)
    rounds = run_rounds([runner.running for runner in runners], sources, batch, progress)
    return [
        next(
            (
                energy_per_image(source, watts, seen[index])
                for source, watts, seen in zip(sources, idle, rounds)
                if source.scope.covers(runner.entry.runs_on)
            ),
            None,
        )
        for index, runner in enumerate(runners)
    ]
