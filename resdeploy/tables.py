"""Tables as text for terminals and as Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

NONE = "-"  # a cell without a value
WORST = 15  # maximum number of rows of a table that shows only the worst or most frequent entries


def plural(count: float, noun: str) -> str:
    """Return a count with its noun, such as `1 thread`, `2 threads` or `1,000 classes`."""
    number = f"{count:g}" if isinstance(count, float) else f"{count:,}"
    ending = "" if count == 1 else "es" if noun.endswith(("s", "x", "tch")) else "s"
    return f"{number} {noun}{ending}"


def duration_text(seconds: float) -> str:
    """Return a duration in a unit that gives it one to three digits."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def percentage(value: float, decimals: int = 1) -> str:
    """Return a percentage that reads `100.0 %` or `0.0 %` only if it is exactly that."""
    step = 10.0**-decimals
    if 0 < value < step / 2:
        return f"< {step:.{decimals}f} %"
    if value < 100 <= round(value, decimals):
        value = 100 - step
    return f"{value:.{decimals}f} %"


def factor(value: float) -> str:
    """Return a factor with three significant digits, such as `1.05` or `13.4`."""
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{decimals}f}"


DROP = "drop (+: worse)"
"""Head of a column with accuracy drops in percentage points, whose sign alone tells too little."""


def capitalised(text: str) -> str:
    """Return a text with a capital first letter; other letters stay as they are."""
    return f"{text[:1].upper()}{text[1:]}"


def signed(value: float, decimals: int) -> str:
    """Return a number with its sign, which is a plus for all that is rounded to 0."""
    return f"{round(value, decimals) + 0.0:+.{decimals}f}"


def two_digits(value: float) -> str:
    """Return a number with two significant digits, such as `0.70`, or with all before its point."""
    return f"{value:.0f}" if 9.95 <= abs(value) < 1e6 else f"{value:#.2g}"


def joined(words: Sequence[str]) -> str:
    """Return a list in words, such as `a, b and c`; it has at least one word."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a text table; the first column is aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in [head, rule, *rows]
    )


def markdown_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1
) -> str:
    """Return a Markdown table whose first columns are aligned to the left, the others to the right.

    Args:
        head: Names of the columns.
        rows: Cells of each row.
        text_columns: Number of columns that are aligned to the left.
    """
    alignment = [":--"] * text_columns + ["--:"] * (len(head) - text_columns)
    first, *others = (list(map(markdown_cell, row)) for row in [head, *rows])
    return "\n".join(f"| {' | '.join(row)} |" for row in [first, alignment, *others])


def markdown_cell(text: str) -> str:
    """Return `text` on one line, with Markdown escaped and GitHub's @mentions neutralised."""
    one_line = html.escape(" ".join(text.split()), quote=False)
    escaped = re.sub(r"([\\|`*_\[\]~])", r"\\\1", one_line)
    return re.sub(r"([@#])(?=\w)", r"\1<!-- -->", escaped)
