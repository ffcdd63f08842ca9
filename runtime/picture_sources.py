"""Pictures that a user names: files, folders, and patterns such as `photos/*.jpg`.

Patterns are those of a shell, for programs and systems that do not expand them.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from resdeploy.errors import DataError, ResdeployError
from resdeploy.images.folder import is_hidden, no_images, walk_pictures
from resdeploy.images.formats import PictureFilter


@dataclass(frozen=True, slots=True)
class PictureSource:
    """A file to classify, or a name for which there is none."""

    path: Path
    error: ResdeployError | None = None
    """Reason why there is nothing to classify; None for a file, which may still be damaged."""


def find_pictures(names: Sequence[str | os.PathLike[str]]) -> Iterator[PictureSource | None]:
    """Yield the files that `names` stand for, in their order; None in place of each skipped file.

    A file that is named is never skipped. A folder stands for all image files below it, in the
    order of their paths, except hidden ones. A pattern stands for the names that match it, in their
    order; `**` stands for any number of folders, and with it only files match.
    """
    for name in names:
        path = Path(name)
        if not os.fspath(name):  # as that of a variable that is not set
            reason = DataError("the name of a picture is empty", "name a file or a folder")
            yield PictureSource(path, reason)
        elif os.path.isdir(path):
            yield from _below(path)
        elif os.path.lexists(path) or not glob.has_magic(str(path)):
            yield PictureSource(path)
        else:
            yield from _matching(path)


def _below(folder: Path) -> Iterator[PictureSource | None]:
    pictures, is_empty = PictureFilter(), True
    for found in walk_pictures(folder, pictures):
        is_empty = is_empty and found is None
        if isinstance(found, DataError):
            yield PictureSource(folder, found)
        else:
            yield None if found is None else PictureSource(found)
    if is_empty:
        yield PictureSource(folder, no_images(folder, pictures))


def _matching(pattern: Path) -> Iterator[PictureSource | None]:
    parts = pattern.parts
    plain = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    base, rest = Path(*parts[:plain]), parts[plain:]
    while rest and rest[-1] == "**":  # pathlib would match only folders, or all
        rest = rest[:-1]
    if not rest:
        yield from _below(base)
        return
    asks_for_hidden = any(part.startswith(".") for part in rest)
    try:  # unlike `glob.glob`, pathlib follows no links for `**`, which may lead in circles
        found = sorted(set(base.glob(os.path.join(*rest))))
    except ValueError:  # such as `a**b`, which Python 3.10 to 3.12 refuse
        found = []
    matches = [
        match
        for match in found
        if asks_for_hidden or not any(map(is_hidden, match.relative_to(base).parts))
    ]
    if not matches:
        reason = DataError(f"{pattern} matches no file", "check the pattern, or name a folder")
        yield PictureSource(pattern, reason)
    for match in matches:
        if not os.path.isdir(match):
            yield PictureSource(match)
        elif "**" not in rest:
            yield from _below(match)
