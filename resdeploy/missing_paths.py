"""Hints for paths that do not exist: the neighbour that was probably meant."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path

from resdeploy.readable_text import readable

MAX_ENTRIES = 300  # of the folder, so that a network drive with many files does not delay the error
MAX_NAMED = 5
MAX_LENGTH = 255  # of a name that is compared: that of Linux's file systems
SIMILAR = 0.6  # the limit of difflib.get_close_matches


def missing_path_hint(path: Path, fits: Callable[[Path], bool], otherwise: str, kind: str) -> str:
    """Return "did you mean ...?" with the most similar path that exists and `fits`.

    Without a similar one, return `otherwise`, with the paths that fit unless `kind`, the plural of
    what is needed, is empty. Any part of `path` may be misspelt.
    """
    found = {other: _similarity(path, other) for other in sorted(_alternatives(path, fits))}
    best = max(found, key=lambda other: found[other], default=path)
    if best != path and found[best][0] >= SIMILAR:
        return f"did you mean {readable(str(best))}?"
    names = [readable(str(other)) for other in found]
    more = ", ..." if len(names) > MAX_NAMED else ""
    existing = f"; the {kind} there: {', '.join(names[:MAX_NAMED])}{more}"
    return otherwise + (existing if names and kind else "")


def _alternatives(path: Path, fits: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield the paths that differ from `path` in the first part that does not exist."""
    missing = path
    while not os.path.lexists(missing.parent) and missing != missing.parent:
        missing = missing.parent
    with suppress(OSError, ValueError), os.scandir(missing.parent) as entries:
        for entry in islice(entries, MAX_ENTRIES):
            other = missing.parent / entry.name / path.relative_to(missing)
            if not entry.name.startswith(".") and other != path and fits(other):
                yield other


def _similarity(path: Path, other: Path) -> tuple[float, float]:
    """Return the similarity of two names without the suffixes, which many share, and with them."""
    names = next((a, b) for a, b in zip(path.parts, other.parts) if a != b)
    pairs = [[Path(name).stem.casefold() for name in names], [name.casefold() for name in names]]
    stems, whole = (SequenceMatcher(None, a[:MAX_LENGTH], b[:MAX_LENGTH]).ratio() for a, b in pairs)
    return stems, whole
