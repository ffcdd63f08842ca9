"""Progress of long work: callbacks that display how many items are finished."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[int], None]
"""A callback for the number of items that were finished since the last call."""
Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""A callback for the name of the work and its number of items."""


@contextmanager
def silent(what: str, total: int) -> Iterator[Advance]:
    """Display nothing."""
    yield lambda done: None


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Advance]:
    """Show a bar with the remaining time on stderr; show nothing if that is not a terminal."""
    import click

    if not sys.stderr.isatty():
        yield lambda done: None
        return
    with click.progressbar(length=total, label=what.ljust(12), file=sys.stderr) as bar:
        yield bar.update
