"""What a report is made of, before it is HTML or Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from resdeploy.statistics import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A paragraph."""

    text: str
    aside: bool = False
    """Left out where space is short: in Markdown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Figures; the first column names the rows."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    chosen: frozenset[int] = frozenset()
    """Rows that stand out."""
    aside: bool = False

    @property
    def wordy(self) -> frozenset[int]:
        """Columns that hold words, not figures: they start on the left."""
        return frozenset(
            column
            for column in range(len(self.head))
            if all(row[column][:1].isalpha() for row in self.rows)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A plot, as it stands inline in HTML; Markdown has its tables only."""

    svg: str
    """Markup that was made here: text from outside is escaped in it."""
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A confusion matrix: rows show a class, columns are what it was taken for."""

    caption: str
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Names with what they stand for."""

    facts: tuple[tuple[str, str], ...]
    caption: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """Lines for a shell."""

    lines: tuple[str, ...]


Block = Text | Table | Figure | Matrix | Facts | Commands


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Blocks under a heading."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """All of it."""

    title: str
    verdict: Verdict | None
    summary: tuple[str, ...]
    """What the verdict is about, and the most important figures: a sentence each."""
    sections: tuple[Section, ...]
