"""How long work tells of its progress, without knowing who listens."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[int], None]
"""Called with how many more items are done."""
Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""Called with what is being done, and of how many items."""


@contextmanager
def silent(what: str, total: int) -> Iterator[Advance]:
    """Nobody listens."""
    yield lambda done: None


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Advance]:
    """A bar with the time left on stderr; nothing where that is not a terminal."""
    import click

    if not sys.stderr.isatty():
        yield lambda done: None
        return
    with click.progressbar(length=total, label=what.ljust(12), file=sys.stderr) as bar:
        yield bar.update
