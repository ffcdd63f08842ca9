"""Parts of a page, independent of whether it is written as HTML or as Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from resdeploy.statistics import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table whose first column names the rows."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    highlighted: frozenset[int] = frozenset()
    """Indices of the rows that are highlighted."""
    html_only: bool = False
    """True to leave the table out of the shorter Markdown."""
    names: frozenset[int] = frozenset()
    """Indices of columns of words that may look like numbers, such as names of classes."""

    @property
    def text_columns(self) -> frozenset[int]:
        """Indices of the columns that hold words, not numbers; they are left-aligned."""
        return frozenset(
            column
            for column in range(len(self.head))
            if column in self.names or all(row[column][:1].isalpha() for row in self.rows)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A plot, inline in HTML; Markdown has no plots."""

    svg: str
    """Markup, in which text from outside must be escaped already."""
    caption: str
    """Text above the plot; its first sentence is the title."""
    legend: tuple[tuple[str, str], ...] = ()
    """CSS class and meaning of each line."""


MAX_MATRIX_CLASSES = 25  # larger matrices do not fit on a page


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A confusion matrix: rows are true classes, columns predicted classes. HTML only."""

    caption: str
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A list of names and values."""

    facts: tuple[tuple[str, str], ...]
    caption: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """Lines for a shell."""

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A small picture with its name, and a title that stands out."""

    data: str
    """Data URI of a PNG file."""
    title: str
    text: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Pictures side by side. HTML only."""

    caption: str
    pictures: tuple[Picture, ...]


Block = Text | Table | Figure | Matrix | Facts | Commands | Pictures


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Blocks under a heading."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page with a verdict, a summary and sections."""

    title: str
    lead: str = ""
    """One line about the subject of the page: model, machine, date."""
    verdict: Verdict | None = None
    subject: str = ""
    """Model, date and machine of the results that the verdict is about."""
    recommendation: str = ""
    """Sentence that names the file to deploy, or the reason against deploying."""
    commands: tuple[str, ...] = ()
    """Lines for a shell that the recommendation refers to."""
    summary: tuple[str, ...]
    """Sentences with the reason for the verdict and the most important numbers."""
    warnings: tuple[tuple[tuple[str, ...], str], ...] = ()
    """Doubts, which stand above the recommendation: messages that share a hint, and the hint."""
    sections: tuple[Section, ...]
