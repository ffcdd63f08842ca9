"""What a benchmark measured: how times spread, speed-ups, and how far from the machine's limits."""

from __future__ import annotations

from resdeploy.bench.roofline import Ceilings
from resdeploy.bundle.manifest import graph_name
from resdeploy.pages.blocks import Block, Facts, Figure, Section, Table, Text
from resdeploy.pages.svg import PlotLine, PlotPoint, bands, intervals, scatter
from resdeploy.results.benchmark import BenchmarkDocument, Timing, WorkTotals

NONE = "-"
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
"""Of a number in each precision."""


def benchmark_summary(result: BenchmarkDocument) -> str:
    """One sentence: the fastest, and how much faster than PyTorch."""
    fastest = max(result.results, key=lambda line: line.images_per_second)
    gain = (
        f", {fastest.speedup:.2f} times as fast as PyTorch eager ({fastest.speedup_low:.2f} to "
        f"{fastest.speedup_high:.2f})"
        if fastest.speedup is not None
        else ""
    )
    graph = graph_name(fastest.precision, fastest.encoding)
    return (
        f"{graph} on {fastest.contender} takes {fastest.p50_ms:.2f} ms{gain}; "
        f"batch {fastest.batch}, {fastest.threads} thread{'' if fastest.threads == 1 else 's'}."
    )


def benchmark_section(result: BenchmarkDocument) -> Section:
    """Plots of times and speed-ups, every figure, the roofline, notices."""
    blocks: list[Block] = []
    if spread := [line for line in result.results if len(line.quantiles_ms) == 101]:
        blocks.append(_spread(spread))
    blocks.append(_times(result))
    if gains := [line for line in result.results if line.speedup is not None]:
        blocks.append(_speedups(gains))
    blocks.append(_resources(result))
    if any(line.stages_ms for line in result.results):
        blocks.append(_stages(result))
    if result.work and result.ceilings:
        blocks += _roofline(result, result.work, result.ceilings)
    blocks += [Text(text=f"Notice: {notice}") for notice in result.notices]
    subject = f"{result.environment.model} at {result.environment.image_size} pixels"
    mode = result.environment.mode or "stream"
    first = result.results[0]
    title = f"Speed: {subject}, {mode}, batch {first.batch}, threads {first.threads}"
    return Section(title=title, blocks=tuple(blocks))


def _spread(lines: list[Timing]) -> Figure:
    rows = [(name_of(line), line.quantiles_ms, f"{line.p50_ms:.2f} ms") for line in lines]
    described = "; ".join(
        f"{name_of(line)}: half within {line.quantiles_ms[25]:.2f} to "
        f"{line.quantiles_ms[75]:.2f} ms, 98 % within {line.quantiles_ms[1]:.2f} to "
        f"{line.quantiles_ms[99]:.2f} ms"
        for line in lines
    )
    return Figure(
        svg=bands(
            rows,
            axis="milliseconds for a run, on a logarithmic scale",
            description=f"How the times of single runs spread. {described}",
        ),
        caption="How the times of single runs spread: the line is the median, the dark band holds "
        "half of them, the middle one 90 %, the pale one 98 %.",
    )


def _times(result: BenchmarkDocument) -> Table:
    fastest = max(range(len(result.results)), key=lambda i: result.results[i].images_per_second)
    rows = tuple(
        (
            name_of(line),
            f"{line.p50_ms:.2f}",
            f"{line.p90_ms:.2f}",
            f"{line.p99_ms:.2f}",
            f"{line.images_per_second:.1f}",
            NONE if line.speedup is None else f"{line.speedup:.2f}x",
            NONE if line.speedup is None else f"{line.speedup_low:.2f} to {line.speedup_high:.2f}",
        )
        for line in result.results
    )
    return Table(
        caption="Milliseconds for a run, images in a second, and the speed-up against PyTorch "
        "eager of the same rounds, with its 95 % interval.",
        head=("contender", "p50", "p90", "p99", "images/s", "speed-up", "interval"),
        rows=rows,
        highlighted=frozenset([fastest]),
    )


def _speedups(lines: list[Timing]) -> Figure:
    rows = [
        (
            name_of(line),
            line.speedup_low or 0.0,
            line.speedup or 0.0,
            line.speedup_high or 0.0,
            f"{line.speedup:.2f}x",
        )
        for line in lines
    ]
    described = "; ".join(
        f"{label}: {value:.2f}, {low:.2f} to {high:.2f}" for label, low, value, high, _ in rows
    )
    return Figure(
        svg=intervals(
            rows,
            axis="times as fast as PyTorch eager, on a logarithmic scale",
            description=f"Speed-ups with 95 % intervals. {described}",
            marks=((1.0, "PyTorch eager"),),
            logarithmic=True,
        ),
        caption="Speed-ups with their 95 % intervals.",
    )


def _resources(result: BenchmarkDocument) -> Table:
    measured = any(line.energy for line in result.results)
    on_gpu = any(line.peak_gpu_bytes for line in result.results)
    limited = any(line.limit_share for line in result.results)
    head = ["contender", "cold start", "peak memory", "file"]
    head += ["of the limit", "bound by"] if limited else []
    rows = []
    for line in result.results:
        row = [
            name_of(line),
            NONE if line.cold_start_s is None else f"{line.cold_start_s:.2f} s",
            _megabytes(line.peak_rss_bytes),
            _megabytes(line.file_bytes),
        ]
        if limited:
            row.append(NONE if line.limit_share is None else f"{100 * line.limit_share:.0f} %")
            row.append(line.bound or NONE)
        if on_gpu:
            row.append(_megabytes(line.peak_gpu_bytes))
        if measured:
            energy = line.energy
            row.append(
                NONE
                if energy is None
                else f"{energy.mj_per_image:.1f} ({energy.mj_low:.1f} to {energy.mj_high:.1f})"
            )
        rows.append(tuple(row))
    return Table(
        caption="What else each takes: from the start of a process to the first answer, memory, "
        "and how near it comes to what this machine can do.",
        head=(*head, *(["GPU memory"] if on_gpu else []), *(["mJ/image"] if measured else [])),
        rows=tuple(rows),
        html_only=True,
    )


def _stages(result: BenchmarkDocument) -> Table:
    names = list(dict.fromkeys(name for line in result.results for name in line.stages_ms or ()))
    rows = tuple(
        (
            name_of(line),
            *(f"{line.stages_ms[name]:.2f}" if name in line.stages_ms else NONE for name in names),
        )
        for line in result.results
        if line.stages_ms
    )
    caption = "From the bytes of a JPEG to the answer: milliseconds of each stage, medians."
    return Table(caption=caption, head=("contender", *names), rows=rows)


def _roofline(result: BenchmarkDocument, work: WorkTotals, ceilings: Ceilings) -> list[Block]:
    """Source: see `resdeploy.bench.roofline`."""
    rates = {name: rate for name, rate in ceilings.operations_per_second.items() if rate > 0}
    memory = ceilings.bytes_per_second
    if not rates or not memory or memory <= 0:
        return []
    points, rows = [], []
    for number, line in enumerate(result.results, 1):
        size = BYTES.get(line.precision, 4) * (work.weights + line.batch * work.activations)
        intensity = 2 * work.macs * line.batch / max(size, 1)
        rate = 2 * work.macs * line.images_per_second
        points.append(
            PlotPoint(intensity, rate, str(number), 2 if "torch" in line.contender else 0)
        )
        share = NONE if line.limit_share is None else f"{100 * line.limit_share:.0f} %"
        rows.append((f"{number}  {name_of(line)}", f"{rate / 1e9:.0f}", f"{intensity:.0f}", share))
    left = min(point.x for point in points) / 4
    right = max(max(point.x for point in points), max(rates.values()) / memory) * 4
    lines = [
        PlotLine(((left, left * memory), (rate / memory, rate), (right, rate)), name)
        for name, rate in sorted(rates.items(), key=lambda one: -one[1])
    ]
    described = "; ".join(f"{name}: {rate} billion operations a second" for name, rate, *_ in rows)
    roofs = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.items())
    return [
        Figure(
            svg=scatter(
                points,
                lines,
                x_label="operations for each byte moved",
                y_label="operations a second",
                description=f"Roofline. Ceilings in billions: {roofs}. {described}",
                logarithmic=(True, True),
            ),
            caption="Roofline: no contender can be above the roof of its arithmetic. The numbers "
            "are those of the table; triangles are PyTorch's.",
        ),
        Table(
            caption="Billions of operations a second, operations for each byte, and the share of "
            "the least possible time.",
            head=("contender", "Gop/s", "op/byte", "of the limit"),
            rows=tuple(rows),
            html_only=True,
        ),
        Facts(
            caption="Ceilings, measured in the same run",
            facts=(
                *((name, f"{rate / 1e9:,.0f} Gop/s") for name, rate in rates.items()),
                ("memory", f"{memory / 1e9:,.1f} GB/s"),
            ),
        ),
    ]


def name_of(line: Timing) -> str:
    """Which contender, with what."""
    return f"{line.contender}, {graph_name(line.precision, line.encoding)}"


def _megabytes(size: int | None) -> str:
    return NONE if size is None else f"{size / 1e6:,.0f} MB"
