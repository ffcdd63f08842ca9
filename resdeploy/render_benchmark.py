"""A benchmark as text for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from resdeploy.bundle import graph_name
from resdeploy.console import table
from resdeploy.render import NONE, plural
from resdeploy.render_machine import machine_name

if TYPE_CHECKING:
    from resdeploy.runtime.bench import Benchmark
    from resdeploy.runtime.energy.per_image import ImageEnergy
    from resdeploy.runtime.timing import Timing


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
        f"{environment['model']} at {environment['image_size']} pixels, {environment['mode']}, "
        f"batch {first.batch}, {plural(first.threads, 'thread')}, "
        f"{machine_name(environment['device'])}",
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
