"""A comparison of two bundles or benchmarks, as console text and as a section of a report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from resdeploy.bundle.manifest import graph_name
from resdeploy.bundle.quality import warning_lines
from resdeploy.images.formats import unread_lines
from resdeploy.pages.blocks import Block, Facts, Figure, Section, Table, Text
from resdeploy.pages.svg import intervals
from resdeploy.report.graphs import USES
from resdeploy.result_files.comparison import (
    AccuracyChange,
    Comparison,
    LatencyChange,
    LayerChange,
)
from resdeploy.statistics import Verdict
from resdeploy.tables import DROP, NONE, capitalised, joined, percentage, plural, signed, table

MAX_LAYER_NAMES = 8


def comparison_text(result: Comparison) -> str:
    """Return the tables, notes and verdict of a comparison for a terminal."""
    blocks = (*_accuracy(result), *_latency(result))
    tables = [table(block.head, block.rows) + "\n" for block in blocks]
    notes = [f"{name}: {change}" for name, change in _differences(result)]
    if result.accuracy:
        images = plural(result.accuracy[0].images, "image")
        notes.append(f"accuracy on {images}; images to decide: if predictions change as often")
    notes += [*result.notices, *_image_notes(result), *_time_notes(result)]
    reasons = "; ".join([result.verdict.value, *verdict_reasons(result), *_limits(result)])
    return "\n".join(
        [
            *tables,
            *warning_lines(result.warnings, (result.first, result.second)),
            *notes,
            f"verdict: {reasons}",
        ]
    )


def comparison_section(result: Comparison) -> Section:
    """Return the tables, plots and differences of a comparison for a report."""
    blocks: list[Block] = [
        *_accuracy(result),
        *_paragraph(_image_notes(result)),
        *_drops(result),
        *_latency(result),
        *_paragraph([*_open_time_notes(result), *_untimed_notes(result)]),
        *_slowdowns(result),
    ]
    if differences := _differences(result):
        blocks.append(Facts(caption="Other differences", facts=tuple(differences)))
    if result.identical:
        blocks = [Text(text="Nothing was measured.")]
    return Section(title=f"Changes from {result.first} to {result.second}", blocks=tuple(blocks))


def comparison_summary(result: Comparison) -> list[str]:
    """Return sentences: the limits of a comparison, the reasons of its verdict, and its notices."""
    limits = f"First: {result.first}; second: {result.second}"
    if not result.identical:  # which the notices say, with the reason
        limits = "; ".join([limits, *_limits(result)])
    lines = dict.fromkeys((limits, *verdict_reasons(result), *result.notices))
    return [f"{capitalised(line)}." for line in lines]


def verdict_reasons(result: Comparison) -> list[str]:
    """Return why a comparison failed or is inconclusive: which limit is exceeded, and by how much.

    The figures are those of the slowest or least accurate graph or contender; of those that are
    inconclusive, of the one that may be it, by the upper bound. The others are counted.
    """
    if result.verdict not in (Verdict.FAIL, Verdict.INCONCLUSIVE):
        return []
    failed = result.verdict is Verdict.FAIL
    reasons = list[str]()
    if drops := [line for line in result.accuracy if line.verdict is result.verdict]:
        drop = max(drops, key=lambda line: line.drop if failed else line.drop_high)
        limit = plural(result.max_drop, "point")
        reasons.append(
            f"the {_metric(drop)} drop of {drop.artifact} is "
            + (
                f"{drop.drop:.2f} points, {drop.drop - result.max_drop:.2f} above the limit of "
                if failed
                else f"between {signed(drop.drop_low, 2)} and {signed(drop.drop_high, 2)} points, "
                "limit "
            )
            + limit
            + _others([line.artifact for line in drops if line is not drop], result.verdict)
        )
    if slowdowns := [line for line in result.latency if line.verdict is result.verdict]:
        slow = max(slowdowns, key=lambda line: line.slowdown if failed else line.slowdown_high)
        others = [_name(line) for line in slowdowns if line is not slow]
        reasons.append(
            f"the slowdown of {_name(slow)} is "
            + (
                f"{slow.slowdown:.1f} %, {slow.slowdown - result.max_slowdown:.1f} points above "
                "the limit of "
                if failed
                else f"between {signed(slow.slowdown_low, 1)} and "
                f"{signed(slow.slowdown_high, 1)} %, limit "
            )
            + f"{result.max_slowdown:g} %{_others(others, result.verdict)}"
        )
    if result.accuracy or not failed:  # a benchmark without a contender does not fail
        missing = ", ".join(result.missing)
        reasons += [f"missing in {result.second}: {missing}"] if missing else []
    return reasons if result.accuracy else [*reasons, *result.notices]


def _others(names: Sequence[str], verdict: Verdict) -> str:
    return f" (also {verdict.value}: {joined([*dict.fromkeys(names)])})" if names else ""


def _name(line: AccuracyChange | LatencyChange) -> str:
    if isinstance(line, AccuracyChange):
        return f"{line.artifact} on {line.backend}"
    return f"{line.graph} on {line.contender}"


def _metric(line: AccuracyChange) -> str:
    return "accuracy" if line.truth == "labels" else "agreement"


def _limits(result: Comparison) -> list[str]:
    if result.identical:
        return ["the bundles are identical in what they answer"]
    limits = [f"a drop of {plural(result.max_drop, 'point')}"] if result.accuracy else []
    limits += [f"a slowdown of {result.max_slowdown:g} %"] if result.latency else []
    return [f"limits: {', '.join(limits)}"] if limits else []


def _paragraph(notes: Sequence[str]) -> list[Text]:
    return [Text(text=" ".join(f"{note}." for note in notes))] if notes else []


def _accuracy(result: Comparison) -> list[Table]:
    if not result.accuracy:
        return []
    by_labels = result.accuracy[0].truth == "labels"
    rows = [
        (
            _name(line),
            line.verdict.value,
            signed(line.drop, 2),
            _bounds(line),
            percentage(line.first, 2),
            percentage(line.second, 2),
            _images_to_decide(line),
        )
        for line in result.accuracy
    ]
    metric = "top-1" if by_labels else "agreement"
    head = (
        "graph on backend", "verdict", DROP, "95 % bounds", f"{metric}, first", "second",
        "images to decide",
    )  # fmt: skip
    measured = "Top-1 accuracy" if by_labels else "Agreement with PyTorch"
    caption = (
        f"{measured} of both bundles on the same {result.accuracy[0].images:,} images. The drop "
        "is in percentage points; the true drop is not below the first bound, and not above the "
        "second, with 95 % confidence each. "
        f"The verdict is {'pass' if by_labels else 'reproduced'} if both bounds are at most "
        f"{result.max_drop:g}, the limit; it is fail if the drop is above the limit and both "
        "bounds are above 0; otherwise it is inconclusive. Images to decide about an inconclusive "
        "verdict: an estimate, if predictions change as often as on these; unknown: the drop is "
        "too close to the limit."
    )
    return [Table(caption=caption, head=head, rows=tuple(rows))]


def _latency(result: Comparison) -> list[Table]:
    if not result.latency:
        return []
    rows = [
        (
            _name(line),
            line.verdict.value,
            f"{signed(line.slowdown, 1)} %",
            f"{signed(line.slowdown_low, 1)} to {signed(line.slowdown_high, 1)}",
            f"{line.first_ms:.2f} ms",
            f"{line.second_ms:.2f} ms",
            str(line.batch),
            str(line.threads),
        )
        for line in result.latency
    ]
    first = result.latency[0]
    interval = f"{100 * first.confidence:.0f} % interval"
    head = (
        "graph on backend", "verdict", "slowdown", interval, "first", "second", "batch", "threads",
    )  # fmt: skip
    words = ""
    if first.relative_to:
        words = (
            f" It compares the times relative to {first.relative_to} in the same run, so it is not "
            "the ratio of the two columns."
        )
    elif first.seconds is not None:
        words = (
            " It is the median of the ratios of times measured in turn, not the ratio of the two "
            "columns. The confidence is higher than that of the accuracy, because the interval is "
            "examined several times during the measurement."
        )
    caption = (
        f"Median latency of both{_measured_time(result)}. The slowdown is that of the second, "
        f"with its {interval} in %.{words} The verdict is pass if the whole interval is at most "
        f"{result.max_slowdown:g} %, the limit; it is fail if the whole interval is above the "
        "limit; otherwise it is inconclusive."
    )
    return [Table(caption=caption, head=head, rows=tuple(rows))]


def _measured_time(result: Comparison) -> str:
    """Return a clause about the time of the measurements, if all took equally long."""
    times = {_measured(line).removeprefix("after ") for line in result.latency}
    return f", measured for {times.pop()}" if len(times) == 1 else ""


def _drops(result: Comparison) -> list[Figure]:
    rows = [(_name(line), line.drop_low, line.drop, line.drop_high) for line in result.accuracy]
    unit = "points"
    return _intervals("Drop, and its 95 % bounds", unit, rows, result.max_drop, "no drop")


def _slowdowns(result: Comparison) -> list[Figure]:
    rows = [
        (_name(line), line.slowdown_low, line.slowdown, line.slowdown_high)
        for line in result.latency
    ]
    return _intervals("Slowdown, and its interval", "%", rows, result.max_slowdown, "no slowdown")


def _intervals(
    what: str, unit: str, rows: Sequence[tuple[str, float, float, float]], limit: float, zero: str
) -> list[Figure]:
    """Return a plot that shows on which side of the limit each interval lies."""
    if not rows:
        return []
    return [
        Figure(
            svg=intervals(rows, axis=f"{what.partition(',')[0].lower()} in {unit}",
                          description=f"{what}, in {unit}.", marks=(0.0, limit)),
            caption=f"{what}. An interval on both sides of the limit is inconclusive.",
            legend=(("mark0", zero), ("mark1", f"limit: {limit:g} {unit}")),
        )
    ]  # fmt: skip


def _differences(result: Comparison) -> list[tuple[str, str]]:
    """Return the differences of the exports, and the layers, calibrators and graphs of one side."""
    differences = [(c.name, f"from {c.first} to {c.second}") for c in result.exports]
    differences += [
        (f"{graph_name('int8', change.encoding)}.onnx", _layers(change)) for change in result.layers
    ]
    sides = ((result.first, result.missing), (result.second, result.added))
    return differences + [(f"only in {name}", ", ".join(found)) for name, found in sides if found]


def _image_notes(result: Comparison) -> list[str]:
    return unread_lines(result.unreadable, result.passed_over)


def _time_notes(result: Comparison) -> list[str]:
    return _joined(
        (f"{line.contender} {line.graph} {_measured(line)}", _times(line))
        for line in result.latency
    )


def _open_time_notes(result: Comparison) -> list[str]:
    """Return the notes about latencies that are not decided."""
    lines = tuple(line for line in result.latency if line.verdict is Verdict.INCONCLUSIVE)
    return _time_notes(replace(result, latency=lines))


def _untimed_notes(result: Comparison) -> list[str]:
    """Return a note about each INT8 graph that another one replaces on this machine."""
    timed = {line.graph for line in result.latency}
    untimed = {line.artifact for line in result.accuracy} - timed
    is_timed = any(graph.startswith("int8") for graph in timed)
    return [
        f"{graph} is made for {USES[graph]}, and is not timed here"
        for graph in sorted(untimed)
        if is_timed and graph.startswith("int8")
    ]


def _joined(outcomes: Iterable[tuple[str, str]]) -> list[str]:
    """Return one line for each outcome, with the names that share it."""
    names: dict[str, list[str]] = {}
    for name, outcome in outcomes:
        names.setdefault(outcome, []).append(name)
    return [f"{', '.join(which)}: {outcome}" for outcome, which in names.items()]


def _bounds(line: AccuracyChange) -> str:
    if not line.different:
        return "bit-identical"
    if line.drop_low == line.drop_high:
        return "same weights"
    return f"{signed(line.drop_low, 2)} to {signed(line.drop_high, 2)}"


def _images_to_decide(line: AccuracyChange) -> str:
    if line.verdict is not Verdict.INCONCLUSIVE:
        return NONE
    return "unknown" if line.images_to_decide is None else f"{line.images_to_decide:,}"


def _times(line: LatencyChange) -> str:
    """Return whether the latency of a contender was decided, and what was or is enough for it."""
    noun = "round" if line.seconds is None else "start"
    needed = line.samples_to_decide
    if line.verdict is not Verdict.INCONCLUSIVE:
        if needed is None or needed >= line.samples:
            return "latency decided"
        return f"latency decided; about {plural(needed, noun)} would have been enough"
    if needed is None:
        return (
            "latency inconclusive, and more would not decide: the slowdown is about the limit, or "
            "the machine is too noisy"
        )
    more = max(needed - line.samples, 1)
    samples = plural(more, noun)
    if line.seconds is not None:
        samples = f"{line.seconds * more / line.samples:.0f} s ({samples})"
    return f"latency inconclusive; about {samples} more would decide"


def _measured(line: LatencyChange) -> str:
    if line.seconds is None:
        return f"after {plural(line.samples, 'round')}"
    return f"after {line.seconds:.0f} s ({plural(line.samples, 'start')} of both)"


def _layers(change: LayerChange) -> str:
    changes = [
        f"{plural(len(names), 'layer')} from {before} to {after} "
        f"({', '.join(names[:MAX_LAYER_NAMES])}{', ...' if len(names) > MAX_LAYER_NAMES else ''})"
        for names, before, after in (
            (change.to_float, "INT8", "float"),
            (change.to_int8, "float", "INT8"),
        )
        if names
    ]
    if change.calibrators[0] != change.calibrators[1]:
        changes.append(f"calibrator from {change.calibrators[0]} to {change.calibrators[1]}")
    return "; ".join(changes)
