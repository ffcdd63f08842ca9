"""The benchmark of a bundle: every backend that can run here takes turns with PyTorch."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from resdeploy.benchmark_process.ceilings import best_ceilings
from resdeploy.benchmark_process.workload import (
    DEFAULT_BATCH,
    BenchmarkMode,
    Workload,
    write_pictures,
)
from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import graph_name
from resdeploy.bundle.quality import relevant_warnings
from resdeploy.machine.conditions import load_average, notices
from resdeploy.machine.device import Device, Scope, available_cores, read_device
from resdeploy.machine.host import Host
from resdeploy.progress import Progress, silent
from resdeploy.result_files.benchmark import (
    BASELINE,
    WIDE_INTERVALS,
    BaselineFacts,
    Benchmark,
    BenchmarkEnvironment,
    ImageEnergy,
    Timing,
)
from resdeploy.result_files.provenance import shown_path
from resdeploy.runtime.bench.contenders import CEILINGS, ceiling_contenders, list_contenders
from resdeploy.runtime.bench.energy_per_image import (
    energy_per_image,
    idle_power,
    measure_rounds,
)
from resdeploy.runtime.bench.faster_streams import with_faster_streams
from resdeploy.runtime.bench.runs import (
    ContenderRunner,
    baseline_of,
    run_contenders,
    start_all,
    stop_all,
    timed_runners,
)
from resdeploy.runtime.bench.stopping_rule import relative_width
from resdeploy.runtime.bench.summary import summarise
from resdeploy.runtime.energy.meter import find_sources
from resdeploy.runtime.energy.source import PowerSource
from resdeploy.tables import factor, plural

BUSY = 0.5  # load average of each core, from which on other programs disturb a benchmark


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkConfig:
    """The settings of a benchmark."""

    mode: BenchmarkMode = BenchmarkMode.STREAM
    batch: int | None = None
    """Images in one call; None for `DEFAULT_BATCH`."""
    threads: int | None = None
    """Threads of each contender; None for one per core."""
    seconds: float = 15.0
    """The time limit for each contender, without starts, warm-up and energy."""
    within: float = 0.05
    """The benchmark ends early if (upper - lower bound) / speed-up is at most this for all."""
    time_limit: float | None = None
    """The time limit of the whole benchmark in seconds, without energy; None for no limit."""
    checkpoint: Path | None = None
    """Weights for PyTorch; None for the checkpoint that the bundle was exported from."""
    pictures: Path | None = None
    """A folder of picture files for the end-to-end mode; None for the golden images as JPEG."""
    also: tuple[str, ...] = ()
    """Backends that take part in addition to the automatic ones."""
    without: tuple[str, ...] = ()
    """Contenders to leave out; see `contenders.NAMES`."""


def run_benchmark(
    bundle: Bundle,
    config: BenchmarkConfig = BenchmarkConfig(),
    *,
    progress: Progress = silent,
    host: Host | None = None,
) -> Benchmark:
    """Time PyTorch and every backend that can run here, in turns.

    Raises:
        BackendError: No contender can start, or PyTorch cannot use the checkpoint.
        DataError: The folder has no picture files.
    """
    deadline = time.perf_counter() + (config.time_limit or math.inf)
    host = host or Host()
    load = load_average(host)
    threads = config.threads or available_cores()
    batch = config.batch or DEFAULT_BATCH[config.mode]
    sources = find_sources(host)
    with ExitStack() as stack:
        for source in sources:
            stack.callback(source.close)
        pictures = _pictures(bundle, config, stack)
        workload = Workload(bundle=bundle.path, batch=batch, threads=threads, pictures=pictures)
        specs = list_contenders(
            bundle, workload,
            checkpoint=config.checkpoint, also=config.also, without=config.without,
        )  # fmt: skip
        if config.mode is BenchmarkMode.OFFLINE:
            specs = [with_faster_streams(spec, bundle, workload) for spec in specs]
        if CEILINGS not in config.without:
            specs += ceiling_contenders(threads)
        required = BASELINE if config.checkpoint else None
        runners = start_all(specs, threads, required=required, progress=progress)
        stack.callback(stop_all, runners)
        before = read_device(host)
        idle = [idle_power(source) for source in sources]
        run_contenders(
            runners, threads, seconds=config.seconds, within=config.within, deadline=deadline,
            nvml=host.nvml(), progress=progress,
        )  # fmt: skip
        after = read_device(host)  # before the machine cools down
        energies = _energies(timed_runners(runners), sources, idle, batch, progress)
    return _make_result(bundle, config, workload, runners, energies, before, after, load)


def _make_result(
    bundle: Bundle,
    config: BenchmarkConfig,
    workload: Workload,
    runners: Sequence[ContenderRunner],
    energies: Sequence[ImageEnergy | None],
    before: Device,
    after: Device,
    load: float | None,
) -> Benchmark:
    measuring = [runner for runner in runners if runner.spec.name == CEILINGS]
    ceilings = {
        scope: best_ceilings([r.stages for r in measuring if r.spec.runs_on is scope])
        for scope in (Scope.GPU, Scope.CPU)
    }
    work = bundle.manifest.work.totals
    baseline, timed = baseline_of(runners), timed_runners(runners)
    timings = tuple(
        summarise(runner, baseline, work, ceilings.get(runner.spec.runs_on), workload, energy)
        for runner, energy in zip(timed, energies)
    )
    return Benchmark(
        environment=BenchmarkEnvironment.collect(
            before,
            model=bundle.manifest.model["name"],
            image_size=bundle.manifest.preprocessing.image_size,
            bundle=shown_path(bundle.path),
            mode=config.mode.value,
            rounds=len(runners[0].times),
            runs=tuple(len(run) for run in runners[0].runs),
            seconds=config.seconds,
            within=config.within,
            time_limit=config.time_limit,
            high_priority=all(runner.high_priority for runner in runners),
            baseline=baseline and _baseline_facts(baseline, bundle),
        ),
        work=work,
        ceilings=ceilings[Scope.GPU] or ceilings[Scope.CPU],
        notices=(
            *([baseline.facts["notice"]] if baseline and baseline.facts.get("notice") else []),
            *load_notice(load, available_cores()),
            *notices(before.conditions, after.conditions, after.gpus),
            *(
                f"the times of {runner.spec.label} were not stable after the warm-up"
                for runner in timed
                if not runner.stable
            ),
            *wide_intervals(timings, config.within),
        ),
        warnings=relevant_warnings(
            bundle.manifest, [graph_name(t.precision, t.encoding) for t in timings]
        ),
        results=timings,
    )


def _baseline_facts(baseline: ContenderRunner, bundle: Bundle) -> BaselineFacts:
    if bundle.manifest.is_graph:
        return BaselineFacts(weights="fp32.onnx", device="cpu", name=baseline.spec.label)
    return BaselineFacts(weights=baseline.facts["weights"], device=baseline.facts["device"])


def load_notice(load: float | None, cores: int) -> list[str]:
    """Return a sentence if other programs were busy in the minute before a benchmark."""
    if load is None or load < BUSY * cores:
        return []
    return [
        f"the load average was {load:.1f} on {plural(cores, 'core')} in the minute before the "
        "benchmark; other programs make the times longer and the intervals wider"
    ]


def wide_intervals(timings: Sequence[Timing], within: float) -> list[str]:
    """Return a sentence about the intervals that are not narrow enough."""
    widths = [
        (
            relative_width(t.speedup, t.speedup_low, t.speedup_high),
            f"{t.contender} {graph_name(t.precision, t.encoding)} "
            f"({factor(t.speedup_low)} to {factor(t.speedup_high)})",
        )
        for t in timings
        if t.speedup and t.speedup_low and t.speedup_high
    ]
    wide = [name for width, name in widths if width > within]
    if not wide:
        return []
    return [
        f"{WIDE_INTERVALS} {100 * within:g} % of the speed-up: "
        f"{', '.join(wide)}; measure longer with --time-limit and --seconds"
    ]


def _pictures(bundle: Bundle, config: BenchmarkConfig, stack: ExitStack) -> Path | None:
    """Return the folder of picture files; None unless the mode is end-to-end."""
    if config.mode is not BenchmarkMode.END_TO_END:
        return None
    if config.pictures:
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
    """Measure each energy with the first source that covers the device; None if no source does."""
    if not sources:
        return [None] * len(runners)
    rounds = measure_rounds([runner.running for runner in runners], sources, batch, progress)
    return [
        next(
            (
                energy_per_image(source, watts, source_rounds[index])
                for source, watts, source_rounds in zip(sources, idle, rounds)
                if source.scope.covers(runner.spec.runs_on)
            ),
            None,
        )
        for index, runner in enumerate(runners)
    ]
