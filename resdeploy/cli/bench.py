"""The command `resdeploy bench`: time the backends of this machine against PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from click import BadParameter, Choice, UsageError, argument, option

from resdeploy.benchmark_process.roofline import ABOVE_LIMIT
from resdeploy.bundle.manifest import Encoding, Precision, graph_name
from resdeploy.bundle.quality import warning_lines
from resdeploy.cli.options.common import FORCE, LONGEST_SECONDS, THREADS, FiniteRange, Integers
from resdeploy.cli.options.console import PATH, CommandResult, command, result_text
from resdeploy.images.preprocessing import size_text
from resdeploy.json_documents import write_document
from resdeploy.readable_text import readable
from resdeploy.tables import NONE, factor, plural, table

if TYPE_CHECKING:
    from resdeploy.result_files.benchmark import Benchmark, ImageEnergy, Timing


ONNX_RUNTIME = "onnxruntime-cpu"  # the engine that `resdeploy explain --slow` measures
FAST = 1.5  # smallest speed-up of INT8 against FP32 that needs no explanation


def _parse_percentage(context: object, parameter: object, text: str) -> float:
    """Return `5%` or `5` as 0.05."""
    try:
        percentage = float(text.removesuffix("%"))
    except ValueError:
        percentage = 0.0
    if not 0 < percentage <= 100:
        raise BadParameter(f"{text!r} is not a percentage above 0 and up to 100, such as 5%")
    return percentage / 100


@command
@argument("bundle", type=PATH)
@option(
    "--mode",
    type=Choice(["stream", "offline", "end-to-end"]),
    default="stream",
    help="Calls to measure. stream: single calls in sequence; offline: large batches; end-to-end: "
    "from the bytes of a JPEG file to the labels.",
)
@option(
    "--baseline",
    "checkpoint",
    type=PATH,
    help="File or run folder with the weights for PyTorch.  [default: those that the bundle was "
    "exported from, if the "
    "current folder has them]",
)
@option(
    "--batch",
    type=Integers(1, 4096),
    help="Number of images in one inference.  [default: 1; 8 with --mode offline]",
)
@THREADS
@option(
    "--seconds",
    type=FiniteRange(0.1, LONGEST_SECONDS),
    default=15.0,
    help="Longest time in which each contender is measured, in seconds, without start and warm-up.",
)
@option(
    "--time-limit",
    type=FiniteRange(1, LONGEST_SECONDS),
    default=100.0,
    help="Planned duration of the whole benchmark, in seconds, without the measurement of energy. "
    "A shorter one has fewer and shorter runs, but at least three, which can take longer.",
)
@option(
    "--within",
    metavar="PERCENT",
    callback=_parse_percentage,
    default="5%",
    help="Stop earlier if the width of the 95 % confidence interval of each speed-up is less than "
    "this percentage of the speed-up.",
)
@option(
    "--images",
    "pictures",
    type=PATH,
    help="With --mode end-to-end: folder of pictures.  [default: the golden images as JPEG]",
)
@option("--also", type=Choice(["openvino"]), multiple=True, help="Also measure this backend.")
@option(
    "--without",
    metavar="NAME",
    multiple=True,
    help="Leave out a contender, such as pytorch-compile, or `ceilings`, the measurement of this "
    "machine's limits. This option may be repeated.",
)
@option("-o", "--output", type=PATH, help="Also write the JSON document to this file.")
@FORCE
def bench(
    bundle: Path, output: Path | None, force: bool, mode: str, **settings: Any
) -> CommandResult:
    """Measure latency and throughput of BUNDLE on this machine.

    The command compares all backends that can run here with PyTorch. Each contender runs in
    processes of its own, and the contenders take turns.
    """
    from resdeploy.benchmark_process.workload import BenchmarkMode
    from resdeploy.bundle.bundle import open_bundle
    from resdeploy.filesystem import refuse_existing_file
    from resdeploy.progress import progress_bar
    from resdeploy.runtime.bench.benchmark import BenchmarkConfig, run_benchmark

    if settings["pictures"] is not None and mode != "end-to-end":
        raise UsageError("--images needs --mode end-to-end")
    if output is not None:
        refuse_existing_file(output, force=force)
    config = BenchmarkConfig(mode=BenchmarkMode(mode), **settings)
    result = run_benchmark(open_bundle(bundle), config, progress=progress_bar)
    lines = [benchmark_text(result), *slow_int8_lines(result.results, bundle)]
    if output is None:
        lines.append("a page with plots needs --output FILE")
    else:
        write_document(output, result)
        names = readable(f"{quote(str(bundle))} {quote(str(output))}")
        lines.append(f"next: resdeploy report {names}")
    return CommandResult(result, "\n".join(lines))


def slow_int8_lines(timings: Sequence[Timing], bundle: Path) -> list[str]:
    """Return the command that tells why INT8 is hardly faster, if it is on ONNX Runtime."""
    speedups = {
        graph_name(timing.precision, timing.encoding): timing.speedup
        for timing in timings
        if timing.contender == ONNX_RUNTIME and timing.speedup is not None
    }
    name = graph_name(Precision.INT8, Encoding.CPU)
    fp32, int8 = speedups.get(graph_name(Precision.FP32, Encoding.FLOAT)), speedups.get(name)
    if fp32 is None or int8 is None or int8 / fp32 >= FAST:
        return []
    return [
        f"why {name} is only {factor(int8 / fp32)}x as fast as fp32: resdeploy explain --slow "
        f"{quote(str(bundle))}"
    ]


SPEEDUP_RULE = (
    "a speed-up is not the ratio of two of these times: those are over all calls, and it is the "
    "mean over runs of ratios within rounds, which is right if the machine slows down for a while"
)


@result_text
def benchmark_text(result: Benchmark) -> str:
    """Return a table with a row per contender, then lines about the settings and the machine."""
    timings = result.results
    speedups = [NONE if t.speedup is None else f"{factor(t.speedup)}x" for t in timings]
    intervals = [
        NONE
        if t.speedup_low is None or t.speedup_high is None
        else f"{factor(t.speedup_low)} to {factor(t.speedup_high)}"
        for t in timings
    ]
    columns = {
        "contender": [t.contender for t in timings],
        "graph": [graph_name(t.precision, t.encoding) for t in timings],
        "p50": [f"{t.p50_ms:.2f} ms" for t in timings],
        "p99": [f"{t.p99_ms:.2f} ms" for t in timings],
        "images/s": [f"{t.images_per_second:.1f}" for t in timings],
        "speed-up": speedups,
        "95 % interval": intervals,
        "share of the limit": [
            NONE if t.limit_share is None else f"{100 * t.limit_share:.0f} % ({t.bound})"
            for t in timings
        ],
        "cold start": [
            NONE if t.cold_start_s is None else f"{t.cold_start_s:.2f} s" for t in timings
        ],
        "peak memory": [
            NONE if t.peak_rss_bytes is None else f"{t.peak_rss_bytes / 1e6:.0f} MB"
            for t in timings
        ],
        "mJ/image": [_energy_cell(t.energy) for t in timings],
    }
    for optional in ("share of the limit", "mJ/image"):
        if set(columns[optional]) == {NONE}:
            del columns[optional]
    environment = result.environment
    energies = {energy.scope: energy for t in timings if (energy := t.energy)}
    return "\n".join(
        [
            table(list(columns), list(zip(*columns.values()))),
            "p50 and p99: median and 99th percentile of the time of a call; speed-up: against "
            f"{result.baseline_name}; cold start: from the start of a process to its first result"
            + ("; limit: the roofline of this machine" if "share of the limit" in columns else ""),
            *([SPEEDUP_RULE] if any(t.speedup for t in timings[1:]) else []),
            *([ABOVE_LIMIT] if any((t.limit_share or 0) > 1 for t in timings) else []),
            f"{environment.model} at {size_text(environment.image_size)} pixels, "
            f"mode {environment.mode}, batch {timings[0].batch}, "
            f"{plural(timings[0].threads, 'thread')}, {environment.device.name}",
            *(
                f"{t.contender} {graph_name(t.precision, t.encoding)}: the fastest way is "
                f"{t.streams} streams with {plural(t.batch // t.streams, 'image')} and "
                f"{plural(t.threads // t.streams, 'thread')} each"
                for t in timings
                if t.streams > 1
            ),
            *_ceilings_lines(result),
            *(_stages_line(t) for t in timings if t.stages_ms),
            *(
                f"energy of the {scope.value}, measured by {energy.source}, less an idle power of "
                f"{energy.idle_watts:.2f} W"
                for scope, energy in energies.items()
            ),
            *warning_lines(result.warnings),
            *(f"notice: {notice}" for notice in result.notices),
        ]
    )


def _energy_cell(energy: ImageEnergy | None) -> str:
    if energy is None:
        return NONE
    return f"{energy.mj_per_image:.1f} ({energy.mj_low:.1f} to {energy.mj_high:.1f})"


def _ceilings_lines(result: Benchmark) -> list[str]:
    if result.ceilings is None or result.ceilings.bytes_per_second is None:
        return []
    rates = ", ".join(
        f"{precision} {rate / 1e9:.0f}"
        for precision, rate in result.ceilings.operations_per_second.items()
    )
    copied = result.ceilings.bytes_per_second / 1e9
    return [f"measured limits of this machine: {rates} Gop/s, memory copy {copied:.1f} GB/s"]


def _stages_line(timing: Timing) -> str:
    stages = ", ".join(f"{name} {ms:.2f} ms" for name, ms in (timing.stages_ms or {}).items())
    return f"{timing.contender} {graph_name(timing.precision, timing.encoding)}: {stages}"
