"""Two bundles or benchmarks, held against each other: for people."""

from __future__ import annotations

from resdeploy.pages.blocks import Block, Section, Table, Text
from resdeploy.results.comparison import Comparison, LayerChange
from resdeploy.tables import table

SHOWN = 8


def comparison_text(result: Comparison) -> str:
    """For a terminal."""
    tables = [*_accuracy(result), *_latency(result)]
    blocks = [f"{table(one.head, one.rows)}\n" for one in tables]
    return "\n".join([*blocks, *_notes(result), comparison_verdict(result)])


def comparison_section(result: Comparison) -> Section:
    """For a report."""
    notes = tuple(Text(text=note) for note in _notes(result))
    blocks: tuple[Block, ...] = (*_accuracy(result), *_latency(result), *notes)
    return Section(title=f"{result.second} against {result.first}", blocks=blocks)


def comparison_verdict(result: Comparison) -> str:
    """What was asked, and the answer."""
    allowed = []
    if result.accuracy:
        allowed.append(f"{result.max_drop:g} points less accurate")
    if result.latency:
        allowed.append(f"{result.max_slowdown:g} % slower")
    return f"verdict: {result.verdict.value}, {' and '.join(allowed)} allowed"


def _accuracy(result: Comparison) -> list[Table]:
    if not result.accuracy:
        return []
    truth = "right" if result.accuracy[0].truth == "labels" else "as PyTorch"
    rows = [
        (
            line.artifact,
            line.backend,
            f"{line.images:,}",
            f"{line.first:.2f} %",
            f"{line.second:.2f} %",
            f"{line.drop:+.2f}",
            f"{line.drop_low:+.2f} to {line.drop_high:+.2f}" if line.different else "same bits",
            line.verdict.value,
        )
        for line in result.accuracy
    ]
    head = (
        "graph", "backend", "images", f"{truth}, first", "second", "drop", "90 % interval",
        "verdict",
    )  # fmt: skip
    caption = "Accuracy on the same images, drops in points: each end of an interval holds at 95 %."
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
        "graph", "contender", "batch", "threads", "first", "second", "slower by", interval,
        "verdict",
    )  # fmt: skip
    relative = f", relative to {first.relative_to} in the same run" if first.relative_to else ""
    return [Table(caption=f"Median latency; slowdowns{relative}.", head=head, rows=tuple(rows))]


def _notes(result: Comparison) -> list[str]:
    needed = [line.images_to_decide for line in result.accuracy if line.images_to_decide]
    return [
        *(_layers(change) for change in result.layers),
        *(f"only the first has {name}" for name in result.missing),
        *(f"only the second has {name}" for name in result.added),
        *result.notices,
        *(
            [f"about {max(needed):,} images would decide, if answers differ as often"]
            if needed
            else []
        ),
    ]


def _layers(change: LayerChange) -> str:
    moves = [
        f"{len(names)} {'layer' if len(names) == 1 else 'layers'} to {where} "
        f"({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for names, where in ((change.to_float, "float"), (change.to_int8, "INT8"))
        if names
    ]
    if change.calibrators[0] != change.calibrators[1]:
        moves.append(f"calibrator {change.calibrators[0]} to {change.calibrators[1]}")
    return f"int8 for {change.encoding.value}: {'; '.join(moves)}"
