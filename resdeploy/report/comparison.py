"""A comparison of two bundles or benchmarks, as console text and as a section of a report."""

from __future__ import annotations

import math
from collections.abc import Iterable

from resdeploy.bundle.quality import warning_lines
from resdeploy.images.formats import unread_lines
from resdeploy.pages.blocks import Block, Section, Table, Text
from resdeploy.result_files.comparison import (
    AccuracyChange,
    Comparison,
    LatencyChange,
    LayerChange,
)
from resdeploy.statistics import Verdict
from resdeploy.tables import percentage, plural, table

MAX_LAYER_NAMES = 8


def comparison_text(result: Comparison) -> str:
    """Return the tables, notes and verdict of a comparison for a terminal."""
    blocks = (*_accuracy(result), *_latency(result))
    tables = [table(block.head, block.rows) + "\n" for block in blocks]
    lines = [*tables, *warning_lines(result.warnings), *_changes(result), *_outcomes(result)]
    return "\n".join([*lines, f"verdict: {_verdict(result)}"])


def comparison_section(result: Comparison) -> Section:
    """Return the tables and notes of a comparison for a report."""
    facts = [f"{note[0].upper()}{note[1:]}" for note in _changes(result)]
    notes = tuple(Text(text=f"{note}.") for note in (*facts, *_outcomes(result)))
    blocks: tuple[Block, ...] = (*_accuracy(result), *_latency(result), *notes)
    return Section(title=f"Changes from {result.first} to {result.second}", blocks=blocks)


def comparison_summary(result: Comparison) -> str:
    """Return one sentence with the limits of a comparison, which its verdict refers to."""
    about = _reason(result) or "nothing was measured"
    return f"First: {result.first}; second: {result.second}; {about}."


def _verdict(result: Comparison) -> str:
    return "; ".join(part for part in (result.verdict.value, _reason(result)) if part)


def _reason(result: Comparison) -> str:
    if result.identical:
        return "the bundles are identical in what they answer"
    limits = []
    if result.accuracy:
        limits.append(f"a drop of {plural(result.max_drop, 'point')}")
    if result.latency:
        limits.append(f"a slowdown of {result.max_slowdown:g} %")
    return f"limits: {', '.join(limits)}" if limits else ""


def _accuracy(result: Comparison) -> list[Table]:
    if not result.accuracy:
        return []
    by_labels = result.accuracy[0].truth == "labels"
    rows = [
        (
            line.artifact,
            line.backend,
            line.verdict.value,
            f"{line.drop:+.2f}",
            f"{line.drop_low:+.2f} to {line.drop_high:+.2f}" if line.different else "bit-identical",
            percentage(line.first, 2),
            percentage(line.second, 2),
            f"{line.images:,}",
        )
        for line in result.accuracy
    ]
    metric = "top-1" if by_labels else "agreement"
    head = (
        "graph", "backend", "verdict", "drop", "95 % bounds", f"{metric}, first", "second",
        "images",
    )  # fmt: skip
    measured = "Top-1 accuracy" if by_labels else "Agreement with PyTorch"
    caption = (
        f"{measured} of both bundles on the same images. The drop is in percentage points; the "
        "true drop is not below the first bound, and not above the second, with 95 % confidence "
        "each."
    )
    return [Table(caption=caption, head=head, rows=tuple(rows))]


def _latency(result: Comparison) -> list[Table]:
    if not result.latency:
        return []
    rows = [
        (
            line.graph,
            line.contender,
            line.verdict.value,
            f"{line.slowdown:+.1f} %",
            f"{line.slowdown_low:+.1f} to {line.slowdown_high:+.1f}",
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
        "graph", "contender", "verdict", "slowdown", interval, "first", "second", "batch",
        "threads",
    )  # fmt: skip
    relative = f", relative to {first.relative_to} in the same run" if first.relative_to else ""
    caption = (
        f"Median latency of both. The slowdown is that of the second{relative}, with its "
        f"{100 * first.confidence:.0f} % confidence interval in %."
    )
    return [Table(caption=caption, head=head, rows=tuple(rows))]


def _changes(result: Comparison) -> list[str]:
    """Return what differs besides the measurements, and notices about these."""
    return [
        *(_layers(change) for change in result.layers),
        *(f"only the first has {name}" for name in result.missing),
        *(f"only the second has {name}" for name in result.added),
        *result.notices,
        *unread_lines(result.unreadable, result.passed_over),
    ]


def _outcomes(result: Comparison) -> list[str]:
    """Return how the measurements decided; graphs with the same outcome share one line."""
    return [
        *_joined((line.artifact, _images(line)) for line in result.accuracy),
        *_joined((f"{line.contender} {line.graph}", _times(line)) for line in result.latency),
    ]


def _joined(outcomes: Iterable[tuple[str, str]]) -> list[str]:
    names: dict[str, list[str]] = {}
    for name, outcome in outcomes:
        names.setdefault(outcome, []).append(name)
    return [f"{', '.join(which)}: {outcome}" for outcome, which in names.items()]


def _images(line: AccuracyChange) -> str:
    """Return how many images decided or would decide the accuracy of a graph."""
    count, needed = f"{line.images:,} image{'s' * (line.images != 1)}", line.images_to_decide
    if not line.different:
        return f"accuracy decided on {count}, because all logits are bit-identical"
    if line.verdict is not Verdict.INCONCLUSIVE:
        enough = f"; about {needed:,} would have been enough" if needed != line.images else ""
        return f"accuracy decided on {count}{enough}"
    if needed is None:
        return f"accuracy undecided on {count}, and no number decides: the drop is about the limit"
    digits = max(len(str(needed - line.images)) - 2, 0)
    rounded = math.ceil((needed - line.images) / 10**digits) * 10**digits
    more = f"about {rounded:,} more would decide, if predictions change as often"
    return f"accuracy undecided on {count}; {more}"


def _times(line: LatencyChange) -> str:
    """Return how long a measurement decided or would decide the latency of a contender."""
    noun = "round" if line.seconds is None else "start"
    measured, needed = plural(line.samples, noun), line.samples_to_decide
    if line.seconds is not None:
        measured = f"{line.seconds:.0f} s ({measured})"
    if line.verdict is not Verdict.INCONCLUSIVE:
        if needed is None or needed >= line.samples:
            return f"latency decided in {measured}"
        return f"latency decided in {measured}; about {plural(needed, noun)} would have been enough"
    if needed is None:
        return (
            f"latency undecided after {measured}, and more would not decide: the slowdown is about "
            "the limit, or the machine is too noisy"
        )
    more = max(needed - line.samples, 1)
    time = "" if line.seconds is None else f"{line.seconds * more / line.samples:.0f} s "
    return (
        f"latency undecided after {measured}; about {time}({plural(more, noun)}) more would decide"
    )


def _layers(change: LayerChange) -> str:
    changes = [
        f"{plural(len(names), 'layer')} to {precision} "
        f"({', '.join(names[:MAX_LAYER_NAMES])}{', ...' if len(names) > MAX_LAYER_NAMES else ''})"
        for names, precision in ((change.to_float, "float"), (change.to_int8, "INT8"))
        if names
    ]
    if change.calibrators[0] != change.calibrators[1]:
        changes.append(f"calibrator {change.calibrators[0]} to {change.calibrators[1]}")
    return f"INT8 graph for {change.encoding.value}: {'; '.join(changes)}"
