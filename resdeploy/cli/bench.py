"""The command `resdeploy bench`: time the backends of this machine against PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resdeploy.cli.console import PATH, CommandResult, command
from resdeploy.cli.options import FORCE, THREADS
from resdeploy.documents import write_document
from resdeploy.tables import NONE, plural, table

if TYPE_CHECKING:
    from resdeploy.results.benchmark import Benchmark, ImageEnergy, Timing


def _parse_percentage(context: click.Context, parameter: click.Parameter, text: str) -> float:
    """Return `5%` or `5` as 0.05."""
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise click.BadParameter(f"{text!r} is not a percentage, such as 5%")
    return share


@click.command()
@click.argument("bundle", type=PATH)
@click.option(
    "--mode",
    type=click.Choice(["stream", "offline", "end-to-end"]),
    default="stream",
    help="stream: single calls in sequence. offline: large batches. end-to-end: from the bytes of "
    "a JPEG file to the labels.",
)
@click.option(
    "--baseline",
    "checkpoint",
    type=PATH,
    help="Weights for PyTorch.  [default: those that the bundle was exported from]",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 4096),
    help="Images in one inference.  [default: 1; 8 with --mode offline]",
)
@THREADS
@click.option(
    "--seconds",
    type=click.FloatRange(0.1),
    default=15.0,
    help="Longest measuring time of each contender, without starts and warm-up, in seconds.",
)
@click.option(
    "--within",
    metavar="PERCENT",
    callback=_parse_percentage,
    default="5%",
    help="Stop earlier once the 95 % confidence interval of each speed-up is narrower than this.",
)
@click.option(
    "--images",
    "pictures",
    type=PATH,
    help="Folder of pictures for --mode end-to-end.  [default: the golden images as JPEG]",
)
@click.option(
    "--also", type=click.Choice(["openvino"]), multiple=True, help="Also time this backend."
)
@click.option(
    "--without",
    metavar="NAME",
    multiple=True,
    help="Leave out a contender, such as pytorch-compile or onnxruntime-cpu, or `ceilings`, the "
    "measurement of this machine's limits.",
)
@click.option("-o", "--output", type=PATH, help="Also write the JSON document to this file.")
@FORCE
@command
def bench(
    bundle: Path, output: Path | None, force: bool, mode: str, **settings: Any
) -> CommandResult:
    """Measure latency and throughput of BUNDLE on this machine.

    All backends that can run here are compared with PyTorch. They run in processes of their own and
    take turns.
    """
    from resdeploy.bench.workload import BenchmarkMode
    from resdeploy.bundle.bundle import open_bundle
    from resdeploy.progress import progress_bar
    from resdeploy.runtime.bench.run import BenchmarkConfig, run_benchmark
    from resdeploy.storage import refuse_existing_file

    if settings["pictures"] is not None and mode != "end-to-end":
        raise click.UsageError("--images needs --mode end-to-end")
    if output is not None:
        refuse_existing_file(output, force=force)
    config = BenchmarkConfig(mode=BenchmarkMode(mode), **settings)
    result = run_benchmark(open_bundle(bundle), config, progress=progress_bar)
    if output is not None:
        write_document(output, result)
    return CommandResult(result, benchmark_text(result))


def benchmark_text(result: Benchmark) -> str:
    """Return a table with a row per contender, then what was measured and on which machine.

    Energy and the share of the roofline's limit have columns where they were measured.
    """
    has_energy = any(line.energy for line in result.results)
    has_limit = any(line.limit_share for line in result.results)
    rows = [
        [
            *_speed_cells(line),
            *([_limit_cell(line)] if has_limit else []),
            NONE if line.cold_start_s is None else f"{line.cold_start_s:.2f} s",
            NONE if line.peak_rss_bytes is None else f"{line.peak_rss_bytes / 1e6:.0f} MB",
            *([energy_text(line.energy)] if has_energy else []),
        ]
        for line in result.results
    ]
    head = [
        "contender", "graph", "p50", "p99", "images/s", "speed-up", "95 % interval",
        *(["of limit"] if has_limit else []), "start", "memory",
        *(["mJ/image"] if has_energy else []),
    ]  # fmt: skip
    first, environment = result.results[0], result.environment
    energies = {energy.scope: energy for line in result.results if (energy := line.energy)}
    lines = [
        table(head, rows),
        f"{environment.model} at {environment.image_size} pixels, {environment.mode}, "
        f"batch {first.batch}, {plural(first.threads, 'thread')}, "
        f"{environment.device.name}",
        *_ceilings_lines(result),
        *(_stages_line(line) for line in result.results if line.stages_ms),
        *(
            f"energy of the {scope.value}, measured by {energy.source}, less an idle power of "
            f"{energy.idle_watts:.2f} W"
            for scope, energy in energies.items()
        ),
        *(f"notice: {notice}" for notice in result.notices),
    ]
    return "\n".join(lines)


def energy_text(energy: ImageEnergy | None) -> str:
    """Return the energy per image in millijoules, with half the width of its interval."""
    if energy is None:
        return NONE
    return f"{energy.mj_per_image:.1f} +- {energy.mj_high - energy.mj_per_image:.1f}"


def _speed_cells(line: Timing) -> list[str]:
    from resdeploy.bundle.manifest import graph_name

    return [
        line.contender,
        graph_name(line.precision, line.encoding),
        f"{line.p50_ms:.2f} ms",
        f"{line.p99_ms:.2f} ms",
        f"{line.images_per_second:.1f}",
        NONE if line.speedup is None else f"{line.speedup:.2f}x",
        NONE if line.speedup is None else f"{line.speedup_low:.2f}-{line.speedup_high:.2f}",
    ]


def _limit_cell(line: Timing) -> str:
    return NONE if line.limit_share is None else f"{100 * line.limit_share:.0f} % {line.bound}"


def _ceilings_lines(result: Benchmark) -> list[str]:
    if result.ceilings is None or result.ceilings.bytes_per_second is None:
        return []
    rates = ", ".join(
        f"{precision} {rate / 1e9:.0f}"
        for precision, rate in result.ceilings.operations_per_second.items()
    )
    copied = result.ceilings.bytes_per_second / 1e9
    return [f"measured limits of this machine: {rates} Gop/s, memory copy {copied:.1f} GB/s"]


def _stages_line(line: Timing) -> str:
    from resdeploy.bundle.manifest import graph_name

    stages = ", ".join(f"{name} {ms:.2f} ms" for name, ms in (line.stages_ms or {}).items())
    return f"{line.contender} {graph_name(line.precision, line.encoding)}: {stages}"
