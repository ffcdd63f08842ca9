"""Blocks of a report about right and wrong predictions: the confusion matrix, the errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from resdeploy.pages.blocks import MAX_MATRIX_CLASSES, Block, Matrix, Table
from resdeploy.tables import plural

MAX_CONFUSED_PAIRS = 10

Confusion = Sequence[tuple[int, int, int]]
"""True class, predicted class and number of images."""


def confusion_blocks(
    labels: Sequence[str], counts: Mapping[str, Confusion], matrix_of: str
) -> list[Block]:
    """Return the confusion matrix and the most frequent errors.

    Args:
        labels: Names of the classes.
        counts: Counts by graph; the matrix and the choice of errors are those of the first one.
        matrix_of: Name of the first one in the caption of the matrix.
    """
    tables = [{(true, said): count for true, said, count in cells} for cells in counts.values()]
    blocks = list[Block]()
    if len(labels) <= MAX_MATRIX_CLASSES:
        classes = range(len(labels))
        blocks.append(
            Matrix(
                caption=f"Confusion matrix of {matrix_of}. Rows are true classes, columns "
                "predicted classes.",
                labels=tuple(labels),
                counts=tuple(tuple(tables[0].get((t, p), 0) for p in classes) for t in classes),
            )
        )
    errors = sorted((pair for pair in tables[0] if pair[0] != pair[1]), key=lambda p: -tables[0][p])
    rows = tuple(
        (
            _label(labels, pair[0]),
            _label(labels, pair[1]),
            *(str(table.get(pair, 0)) for table in tables),
        )
        for pair in errors[:MAX_CONFUSED_PAIRS]
    )
    if rows:
        blocks.append(
            Table(
                caption="Most frequent errors: number of images."
                + equal_pairs_text([tables[0][pair] for pair in errors]),
                head=("true class", "predicted class", *counts),
                rows=rows,
                names=frozenset([0, 1]),
                html_only=True,
            )
        )
    return blocks


def equal_pairs_text(counts: Sequence[int]) -> str:
    """Return a sentence if pairs that the table leaves out have as many images as its last one."""
    ordered = sorted(counts, reverse=True)
    if len(ordered) <= MAX_CONFUSED_PAIRS:
        return ""
    last = ordered[MAX_CONFUSED_PAIRS - 1]
    others = ordered[MAX_CONFUSED_PAIRS:].count(last)
    verb = "has" if others == 1 else "have"
    return f" {plural(others, 'other pair')} also {verb} {plural(last, 'image')}." if others else ""


def _label(labels: Sequence[str], index: int) -> str:
    return labels[index] if 0 <= index < len(labels) else str(index)
