"""TODO."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

NONE = "-"


WORST = 15


def plural(count: float, noun: str) -> str:
    """`1 thread`, `2 threads`."""
    return f"{count:g} {noun}" if count == 1 else f"{count:g} {noun}s"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as needed: the first to the left, the others to the right."""
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
    """The same for GitHub."""
    aligned = [":--", *["--:"] * (len(head) - 1)]
    lines = [[markdown_cell(cell) for cell in row] for row in [head, *rows]]
    return "\n".join(f"| {' | '.join(row)} |" for row in [lines[0], aligned, *lines[1:]])


def markdown_cell(words: str) -> str:
    """Text that stays text in Markdown, on one line, and calls nobody on GitHub."""
    one_line = html.escape(" ".join(words.split()), quote=False)
    escaped = re.sub(r"([\\|`*_\[\]~])", r"\\\1", one_line)
    return re.sub(r"([@#])(?=\w)", r"\1<!-- -->", escaped)
