"""TODO."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resdeploy.bundle.manifest import graph_name
from resdeploy.cli.console import PATH, CommandResult, command, parameters
from resdeploy.cli.options import FORCE
from resdeploy.documents import write_document
from resdeploy.tables import NONE, plural, table

if TYPE_CHECKING:
    from resdeploy.results.benchmark import Benchmark, ImageEnergy, Timing


def _share(context: click.Context, parameter: click.Parameter, text: str) -> float:
    """`5%` or `5` as 0.05."""
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise click.BadParameter(f"{text!r} is not a percentage, such as 5%")
    return share


def _with_pictures(
    context: click.Context, parameter: click.Parameter, folder: Path | None
) -> Path | None:
    if folder is not None and context.params["mode"] != "end-to-end":
        raise click.UsageError("--images goes with --mode end-to-end")
    return folder


bench_options = parameters(
    click.option(
        "--mode",
        type=click.Choice(["stream", "offline", "end-to-end"]),
        default="stream",
        show_default=True,
        is_eager=True,
        help="One call after the other, large batches, or from the bytes of JPEG files to labels.",
    ),
    click.option(
        "--baseline",
        "checkpoint",
        type=PATH,
        help="PyTorch weights.  [default: those of the bundle]",
    ),
    click.option(
        "--batch",
        type=click.IntRange(1, 4096),
        help="Images in one run.  [default: 1; offline 8]",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1, 1024),
        help="Threads of one inference.  [default: all cores]",
    ),
    click.option(
        "--seconds",
        type=click.FloatRange(0.1),
        default=15.0,
        show_default=True,
        help="At most, for each contender.",
    ),
    click.option(
        "--within",
        metavar="PERCENT",
        callback=_share,
        default="5%",
        show_default=True,
        help="End earlier when the intervals of all speed-ups are narrower.",
    ),
    click.option(
        "--images",
        "pictures",
        type=PATH,
        callback=_with_pictures,
        help="Folder of pictures, end to end.  [default: the golden images as JPEG]",
    ),
    click.option("--also", type=click.Choice(["openvino"]), multiple=True, help="Another runtime."),
    click.option(
        "--without",
        metavar="NAME",
        multiple=True,
        help="Leave out, such as pytorch-compile, onnxruntime-cpu, ceilings.",
    ),
    click.option("-o", "--output", type=PATH, help="Also write the JSON document there."),
)


def benchmark_text(result: Benchmark) -> str:
    """A row per contender; energy and the share of the limit where they were measured."""
    measured = any(line.energy for line in result.results)
    limit = any(line.limit_share for line in result.results)
    rows = [
        [
            *_speed_cells(line),
            *([_limit_cell(line)] if limit else []),
            *_start_cells(line),
            *([energy_text(line.energy)] if measured else []),
        ]
        for line in result.results
    ]
    head = [
        "contender", "graph", "p50", "p99", "images/s", "speed-up", "95 % interval",
        *(["of limit"] if limit else []), "start", "memory", *(["mJ/image"] if measured else []),
    ]  # fmt: skip
    first, environment = result.results[0], result.environment
    lines = [
        table(head, rows),
        f"{environment.model} at {environment.image_size} pixels, {environment.mode}, "
        f"batch {first.batch}, {plural(first.threads, 'thread')}, "
        f"{environment.device.name}",
        *_ceilings_lines(result),
        *(
            f"{line.contender} {graph_name(line.precision, line.encoding)}: "
            f"{_stages(line.stages_ms)}"
            for line in result.results
            if line.stages_ms
        ),
    ]
    known = {energy.scope: energy for line in result.results if (energy := line.energy)}
    lines += [
        f"energy: {scope.value} by {energy.source}, {energy.idle_watts:.2f} W of idle subtracted"
        for scope, energy in known.items()
    ]
    return "\n".join([*lines, *(f"notice: {notice}" for notice in result.notices)])


def energy_text(energy: ImageEnergy | None) -> str:
    """Millijoules with half the width of their interval."""
    if energy is None:
        return NONE
    return f"{energy.mj_per_image:.1f} +- {energy.mj_high - energy.mj_per_image:.1f}"


def _speed_cells(line: Timing) -> list[str]:
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


def _start_cells(line: Timing) -> list[str]:
    return [
        NONE if line.cold_start_s is None else f"{line.cold_start_s:.2f} s",
        NONE if line.peak_rss_bytes is None else f"{line.peak_rss_bytes / 1e6:.0f} MB",
    ]


def _ceilings_lines(result: Benchmark) -> list[str]:
    if result.ceilings is None or result.ceilings.bytes_per_second is None:
        return []
    products = ", ".join(
        f"{kind} {speed / 1e9:.0f}" for kind, speed in result.ceilings.operations_per_second.items()
    )
    copied = result.ceilings.bytes_per_second / 1e9
    return [f"limits measured beside: {products} G operations/s, copy {copied:.1f} GB/s"]


def _stages(stages: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {milliseconds:.2f} ms" for name, milliseconds in stages.items())


@click.command()
@click.argument("bundle", type=PATH)
@bench_options
@FORCE
@command
def bench(
    bundle: Path, output: Path | None, force: bool, mode: str, **settings: Any
) -> CommandResult:
    """Time BUNDLE on every backend here against PyTorch, in turns, one process each."""
    from resdeploy.bench.workload import BenchmarkMode
    from resdeploy.bundle.bundle import open_bundle
    from resdeploy.progress import progress_bar
    from resdeploy.runtime.bench.run import BenchmarkConfig, run_benchmark
    from resdeploy.storage import refuse_existing_file

    if output is not None:
        refuse_existing_file(output, force=force)
    config = BenchmarkConfig(mode=BenchmarkMode(mode), **settings)
    result = run_benchmark(open_bundle(bundle), config, progress=progress_bar)
    if output is not None:
        write_document(output, result)
    return CommandResult(result, benchmark_text(result))
