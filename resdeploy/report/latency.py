"""Report section of a benchmark: times, speed-ups, resources and the roofline."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from resdeploy.benchmark_process.roofline import (
    ABOVE_LIMIT,
    Ceilings,
    arithmetic_of,
    operations_per_byte,
)
from resdeploy.bundle.manifest import graph_name
from resdeploy.bundle.operation_counts import WorkTotals
from resdeploy.images.preprocessing import size_text
from resdeploy.pages.blocks import Block, Figure, Section, Table, Text
from resdeploy.pages.svg import PlotLine, PlotPoint, bands, intervals, scatter
from resdeploy.result_files.benchmark import WIDE_INTERVALS, Benchmark, Timing
from resdeploy.statistics import repeated_ratio_interval
from resdeploy.tables import NONE, capitalised, factor, joined, percentage, plural

FEWEST_ROUNDS = 5  # with fewer, all rounds favour one of two equal contenders by chance too often


def benchmark_summary(result: Benchmark) -> str:
    """Return the contender with the smallest latency, its speed-up, and its interval."""
    fastest, rivals = rank(result.results, result.environment.runs)
    gain = ""
    if fastest.speedup is not None:
        gain = (
            f", {factor(fastest.speedup)} times as fast as {result.baseline_name} (95 % interval "
            f"{factor(fastest.speedup_low or 0.0)} to {factor(fastest.speedup_high or 0.0)})"
        )
    graph = graph_name(fastest.precision, fastest.encoding)
    which = "Smallest latency, though not with certainty:" if rivals else "The fastest contender is"
    return (
        f"{which} {fastest.contender} with {graph}: {fastest.p50_ms:.2f} ms"
        f"{gain}; batch {fastest.batch}, {plural(fastest.threads, 'thread')}."
        f"{_noise_sentence(result)}"
    )


def rank(timings: Sequence[Timing], runs: Sequence[int]) -> tuple[Timing, list[Timing]]:
    """Return the fastest contender, and those that are not known to be slower.

    Contenders are compared by the ratios of their times in the same rounds; where these do not
    decide, the one with the smaller median is faster. `runs` has the number of rounds in each run.
    """
    fastest = min(timings, key=lambda timing: timing.p50_ms)
    for timing in timings:
        if _is_faster(timing, fastest, runs):
            fastest = timing
    others = (timing for timing in timings if timing is not fastest)
    return fastest, [timing for timing in others if not _is_faster(fastest, timing, runs)]


def _is_faster(first: Timing, second: Timing, runs: Sequence[int]) -> bool:
    """Return True if the first is faster with 95 % confidence."""
    rounds = len(first.round_ms)
    if rounds < FEWEST_ROUNDS or rounds != len(second.round_ms):
        return False
    ends = list(accumulate(runs))[:-1] if sum(runs) == rounds else []
    times = [np.split(np.array(timing.round_ms), ends) for timing in (second, first)]
    slow, fast = ([run for run in found if len(run)] for found in times)
    return repeated_ratio_interval(slow, fast)[1] > 1


def _noise_sentence(result: Benchmark) -> str:
    """Return which speed-ups have wide intervals, after a space; empty if none has."""
    noisy = [t for t in result.results if (t.speedup_high or 0.0) > 2 * (t.speedup_low or 0.0)]
    if not noisy:
        return ""
    if len(noisy) > 2:
        some = f"{len(noisy)} of the speed-ups are"
    else:
        names = [f"{graph_name(t.precision, t.encoding)} on {t.contender}" for t in noisy]
        some = f"The speed-up of {joined(names)} is"
    return (
        f" {some} known only within a factor of more than 2, so measure again on an idle machine."
    )


def benchmark_section(result: Benchmark, *, alone: bool = True) -> Section:
    """Return the plots, tables and notices of a benchmark, `alone` if it is the only one."""
    environment, first = result.environment, result.results[0]
    network = f"{environment.model} at {size_text(environment.image_size)} pixels"
    calls = "one image" if first.batch == 1 else f"{first.batch} images"
    mode = f"mode {environment.mode or 'stream'}"
    threads = plural(first.threads, "thread")
    blocks: list[Block] = [Text(text=f"{network}, {calls} per call ({mode}), {threads}.")]
    if spread := [timing for timing in result.results if len(timing.quantiles_ms) == 101]:
        blocks.append(_spread(spread))
    blocks.append(_times(result))
    if gains := [timing for timing in result.results if timing.speedup is not None]:
        blocks.append(_speedups(gains, result.baseline_name))
    blocks.append(_resources(result))
    if any(timing.stages_ms for timing in result.results):
        blocks.append(_stages(result))
    if result.work and result.ceilings:
        blocks += _roofline(result, result.work, result.ceilings)
    notices = result.notices
    if _noise_sentence(result):  # the summary has it
        notices = tuple(notice for notice in notices if not notice.startswith(WIDE_INTERVALS))
    blocks += [Text(text=f"Notice: {notice}.") for notice in notices]
    title = f"Speed: {network}, {mode}, batch {first.batch}, {threads}"
    return Section(title="Speed" if alone else title, blocks=tuple(blocks))


def _spread(timings: list[Timing]) -> Figure:
    rows = [(contender_label(t), t.quantiles_ms) for t in timings]
    return Figure(
        svg=bands(
            rows,
            axis="milliseconds per call (logarithmic)",
            description="Distribution of the times of single calls, in milliseconds.",
        ),
        caption="Distribution of the times of single calls. The line is the median, the inner band "
        "contains 50 %, the middle band 90 % and the outer band 98 %.",
    )


def _times(result: Benchmark) -> Table:
    fastest, _ = rank(result.results, result.environment.runs)
    rows = tuple(
        (
            contender_label(t),
            f"{t.p50_ms:.2f}",
            NONE if t.speedup is None else f"{factor(t.speedup)}x",
            _speedup_interval(t),
            f"{t.images_per_second:.1f}",
            f"{t.p90_ms:.2f}",
            f"{t.p99_ms:.2f}",
        )
        for t in result.results
    )
    return Table(
        caption="Latency and throughput. p50: median of the milliseconds per call; 90 and 99 % of "
        "the calls do not exceed p90 and p99. images/s: mean over all calls. Speed-up: against "
        f"{result.baseline_name}, with its "
        "95 % confidence interval; it is computed from the ratios within rounds, in which all take "
        "turns, not from the column p50.",
        head=(
            "contender",
            "p50 in ms",
            "speed-up",
            "95 % interval",
            "images/s",
            "p90 in ms",
            "p99 in ms",
        ),
        rows=rows,
        highlighted=frozenset([result.results.index(fastest)]),
    )


def _speedups(timings: list[Timing], baseline: str) -> Figure:
    rows = [
        (
            contender_label(timing),
            timing.speedup_low or 0.0,
            timing.speedup or 0.0,
            timing.speedup_high or 0.0,
        )
        for timing in timings
    ]
    return Figure(
        svg=intervals(
            rows,
            axis="speed-up (logarithmic)",
            description="Speed-ups with 95 % confidence intervals.",
            marks=(1.0,),
            logarithmic=True,
        ),
        caption=f"Speed-up against {baseline}, with its 95 % confidence interval.",
        legend=(("mark0", baseline),),
    )


def _resources(result: Benchmark) -> Table:
    timings = result.results
    cold_starts = [NONE if t.cold_start_s is None else f"{t.cold_start_s:.2f} s" for t in timings]
    columns = {
        "contender": [contender_label(timing) for timing in timings],
        "cold start": cold_starts,
        "peak memory": [_megabytes(timing.peak_rss_bytes) for timing in timings],
        "file": [_megabytes(timing.file_bytes) for timing in timings],
        "share of the limit": [_percentage(timing.limit_share) for timing in timings],
        "bound by": [timing.bound or NONE for timing in timings],
        "GPU memory": [_megabytes(timing.peak_gpu_bytes) for timing in timings],
        "mJ/image": [
            f"{energy.mj_per_image:.1f} ({energy.mj_low:.1f} to {energy.mj_high:.1f})"
            if (energy := timing.energy)
            else NONE
            for timing in timings
        ],
    }
    for optional in ("share of the limit", "bound by", "GPU memory", "mJ/image"):
        if set(columns[optional]) == {NONE}:
            del columns[optional]
    return Table(
        caption="Resources. Cold start: time from the start of a process to its first result."
        + (
            " Share of the limit: speed in percent of the roofline's; bound by: the resource that "
            "sets that limit."
            if "bound by" in columns
            else ""
        )
        + (
            f" {capitalised(ABOVE_LIMIT)}."
            if any((timing.limit_share or 0) > 1 for timing in timings)
            else ""
        ),
        head=tuple(columns),
        rows=tuple(zip(*columns.values())),
        html_only=True,
    )


def _stages(result: Benchmark) -> Table:
    names = list(dict.fromkeys(name for t in result.results for name in t.stages_ms or ()))
    rows = tuple(
        (
            contender_label(t),
            *(f"{t.stages_ms[name]:.2f}" if name in t.stages_ms else NONE for name in names),
        )
        for t in result.results
        if t.stages_ms
    )
    caption = "Stages. Median milliseconds, from the bytes of a JPEG to the labels."
    return Table(caption=caption, head=("contender", *names), rows=rows)


def _roofline(result: Benchmark, work: WorkTotals, ceilings: Ceilings) -> list[Block]:
    """Return the roofline plot with its tables.

    Source: see `resdeploy.benchmark_process.roofline`.
    """
    rates = {name: rate for name, rate in ceilings.operations_per_second.items() if rate > 0}
    memory = ceilings.bytes_per_second
    if not rates or not memory or memory <= 0:
        return []
    highest_first = sorted(rates.items(), key=lambda item: -item[1])
    styles = {name: f"line{index % 5}" for index, (name, _) in enumerate(highest_first)}
    points, rows = [], []
    for number, timing in enumerate(result.results, 1):
        arithmetic = arithmetic_of(timing.precision, ceilings)
        intensity = operations_per_byte(work, timing.batch, arithmetic)
        rate = 1000 * work.operations(timing.batch) / inference_ms(timing)
        shape = 2 if "torch" in timing.contender else 0
        points.append(
            PlotPoint(intensity, rate, str(number), shape, style=styles.get(arithmetic, ""))
        )
        name = f"{number}: {contender_label(timing)}"
        rows.append((name, f"{rate / 1e9:.0f}", factor(intensity)))
    left = min(point.x for point in points) / 4
    right = max(max(point.x for point in points), max(rates.values()) / memory) * 4
    lines = [
        PlotLine(((left, left * memory), (rate / memory, rate), (right, rate)), styles[name])
        for name, rate in highest_first
    ]
    described = "; ".join(f"{name}: {rate}" for name, rate, *_ in rows)
    roofs = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.items())
    return [
        Figure(
            svg=scatter(
                points,
                lines,
                x_label="operations per byte moved",
                y_label="operations per second",
                description=f"Roofline in billions of operations per second. Ceilings: {roofs}. "
                f"{described}",
                logarithmic=True,
            ),
            caption="Roofline. Each line is the limit for one arithmetic, measured in the same "
            f"run. The memory copied {memory / 1e9:,.1f} GB/s. A point has the colour of its "
            "arithmetic's line, and the number of its row in the table below; triangles are "
            "PyTorch.",
            legend=tuple(
                (line.style, f"{name}: {rate / 1e9:,.0f} Gop/s")
                for line, (name, rate) in zip(lines, highest_first)
            ),
        ),
        Table(
            caption="Points of the roofline. Billions of operations per second, from the median "
            "time of the inference, as for the share of the limit, and operations per byte.",
            head=("contender", "Gop/s", "op/byte"),
            rows=tuple(rows),
            html_only=True,
        ),
    ]


def inference_ms(timing: Timing) -> float:
    """Return the time that `limit_share` is computed from."""
    if timing.stages_ms:
        return timing.stages_ms["inference"]
    return statistics.median(timing.round_ms or (timing.p50_ms,))


def contender_label(timing: Timing) -> str:
    return f"{timing.contender}, {graph_name(timing.precision, timing.encoding)}"


def _speedup_interval(timing: Timing) -> str:
    if timing.speedup_low is None or timing.speedup_high is None:
        return NONE
    return f"{factor(timing.speedup_low)} to {factor(timing.speedup_high)}"


def _percentage(share: float | None) -> str:
    return NONE if share is None else percentage(100 * share, 0)


def _megabytes(size: int | None) -> str:
    return NONE if size is None else f"{size / 1e6:,.0f} MB"
