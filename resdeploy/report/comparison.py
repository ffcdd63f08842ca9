"""A comparison of two bundles or benchmarks, as console text and as a section of a report."""

from __future__ import annotations

from resdeploy.bundle.quality import warning_lines
from resdeploy.pages.blocks import Block, Section, Table, Text
from resdeploy.result_files.comparison import Comparison, LayerChange
from resdeploy.tables import plural, table

MAX_LAYER_NAMES = 8


def comparison_text(result: Comparison) -> str:
    """Return the tables, notes and verdict of a comparison for a terminal."""
    blocks = (*_accuracy(result), *_latency(result))
    tables = [table(block.head, block.rows) + "\n" for block in blocks]
    lines = [*tables, *warning_lines(result.warnings), *_notes(result)]
    return "\n".join([*lines, f"verdict: {_verdict(result)}"])


def comparison_section(result: Comparison) -> Section:
    """Return the tables and notes of a comparison for a report."""
    notes = tuple(Text(text=note) for note in _notes(result))
    blocks: tuple[Block, ...] = (*_accuracy(result), *_latency(result), *notes)
    return Section(title=f"{result.second} compared with {result.first}", blocks=blocks)


def comparison_summary(result: Comparison) -> str:
    """Return one sentence with the outcome of a comparison."""
    return f"{result.second} compared with {result.first}: {_verdict(result)}."


def _verdict(result: Comparison) -> str:
    limits = []
    if result.accuracy:
        limits.append(f"a drop of {plural(result.max_drop, 'point')}")
    if result.latency:
        limits.append(f"a slowdown of {result.max_slowdown:g} %")
    return result.verdict.value + (f"; limits: {', '.join(limits)}" if limits else "")


def _accuracy(result: Comparison) -> list[Table]:
    if not result.accuracy:
        return []
    by_labels = result.accuracy[0].truth == "labels"
    rows = [
        (
            line.artifact,
            line.backend,
            f"{line.images:,}",
            f"{line.first:.2f} %",
            f"{line.second:.2f} %",
            f"{line.drop:+.2f}",
            f"{line.drop_low:+.2f} to {line.drop_high:+.2f}" if line.different else "bit-identical",
            line.verdict.value,
        )
        for line in result.accuracy
    ]
    metric = "top-1" if by_labels else "agreement"
    head = (
        "graph", "backend", "images", f"{metric}, first", "second", "drop", "90 % interval",
        "verdict",
    )  # fmt: skip
    measured = "Top-1 accuracy" if by_labels else "Agreement with PyTorch"
    caption = (
        f"{measured} of both bundles on the same images. The drop is in percentage points; each "
        "end of its interval is a one-sided 95 % bound."
    )
    return [Table(caption=caption, head=head, rows=tuple(rows))]


def _latency(result: Comparison) -> list[Table]:
    if not result.latency:
        return []
    rows = [
        (
            line.graph,
            line.contender,
            str(line.batch),
            str(line.threads),
            f"{line.first_ms:.2f} ms",
            f"{line.second_ms:.2f} ms",
            f"{line.slowdown:+.1f} %",
            f"{line.slowdown_low:+.1f} to {line.slowdown_high:+.1f}",
            line.verdict.value,
        )
        for line in result.latency
    ]
    first = result.latency[0]
    interval = f"{100 * first.confidence:.0f} % interval"
    head = (
        "graph", "contender", "batch", "threads", "first", "second", "slowdown", interval,
        "verdict",
    )  # fmt: skip
    relative = f", relative to {first.relative_to} in the same run" if first.relative_to else ""
    caption = f"Median latency, and slowdown of the second{relative}."
    return [Table(caption=caption, head=head, rows=tuple(rows))]


def _notes(result: Comparison) -> list[str]:
    notes = [
        *(_layers(change) for change in result.layers),
        *(f"only the first has {name}" for name in result.missing),
        *(f"only the second has {name}" for name in result.added),
        *result.notices,
    ]
    if needed := [line.images_to_decide for line in result.accuracy if line.images_to_decide]:
        notes.append(f"about {max(needed):,} images would decide, if predictions change as often")
    return notes


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
