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
    """Return "did you mean ...?" with the most similar path that exists and is of this kind.

    Without a similar one, the hint names all of this kind, if there are any.

    Args:
        path: A path that does not exist; a part of it may be misspelt.
        fits: Function that returns True for a path of the kind that is needed.
        otherwise: The hint if nothing fits.
        kind: Plural of what is needed, such as "bundles"; an empty text names no others.
    """
    found = sorted(_alternatives(path, fits))
    scores = {name: _similarity(path, name) for name in found}
    best = max(found, key=lambda name: scores[name], default=None)
    if best is not None and scores[best][0] >= SIMILAR:
        return f"did you mean {readable(str(best))}?"
    if found and kind:
        names = ", ".join(readable(str(name)) for name in found[:MAX_NAMED])
        more = ", ..." if len(found) > MAX_NAMED else ""
        return f"{otherwise}; the {kind} there: {names}{more}"
    return otherwise


def _alternatives(path: Path, fits: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield the paths that differ from `path` in the first part that does not exist."""
    missing = path
    while not os.path.lexists(missing.parent) and missing != missing.parent:
        missing = missing.parent
    rest = path.relative_to(missing)
    with suppress(OSError, ValueError), os.scandir(missing.parent) as entries:
        for entry in islice(entries, MAX_ENTRIES):
            other = missing.parent / entry.name / rest
            if not entry.name.startswith(".") and other != path and fits(other):
                yield other


def _similarity(path: Path, other: Path) -> tuple[float, float]:
    """Return the similarity of the names without their suffixes, which many share, and of all."""

    def ratio(first: str, second: str) -> float:
        pair = (text.casefold()[:MAX_LENGTH] for text in (first, second))
        return SequenceMatcher(None, *pair).ratio()

    pairs = [(a, b) for a, b in zip(path.parts, other.parts) if a != b]
    stems = min(ratio(Path(a).stem, Path(b).stem) for a, b in pairs)
    return stems, min(ratio(a, b) for a, b in pairs)
