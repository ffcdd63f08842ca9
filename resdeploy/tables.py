"""Tables as text for terminals and as Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

NONE = "-"  # a cell without a value
WORST = 15  # rows of a list that shows only the worst or the most frequent entries


def plural(count: float, noun: str) -> str:
    """Return a count with its noun, such as `1 thread` or `2 threads`."""
    return f"{count:g} {noun}" if count == 1 else f"{count:g} {noun}s"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a text table; the first column is aligned to the left, the others to the right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in [lines[0], rule, *lines[1:]]
    )


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with the same alignment."""
    aligned = [":--", *["--:"] * (len(head) - 1)]
    lines = [[markdown_cell(cell) for cell in row] for row in [head, *rows]]
    return "\n".join(f"| {' | '.join(row)} |" for row in [lines[0], aligned, *lines[1:]])


def markdown_cell(words: str) -> str:
    """Return `words` on one line, with Markdown escaped and GitHub's @mentions neutralised."""
    one_line = html.escape(" ".join(words.split()), quote=False)
    escaped = re.sub(r"([\\|`*_\[\]~])", r"\\\1", one_line)
    return re.sub(r"([@#])(?=\w)", r"\1<!-- -->", escaped)
