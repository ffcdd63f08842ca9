"""Files of images in a folder, and their decoding in batches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from resdeploy.errors import DataError, ImageError
from resdeploy.filesystem import open_regular
from resdeploy.images.formats import (
    HEAD_BYTES,
    SUFFIXES,
    PictureFilter,
    passed_over_text,
    warn_passed_over,
)
from resdeploy.images.loading import load_image
from resdeploy.images.preprocessing import Preprocessing, UInt8Array
from resdeploy.images.skipped import SINGLE_COLOUR, SkippedImages, has_single_colour, reason_of
from resdeploy.missing_paths import MAX_ENTRIES, missing_path_hint
from resdeploy.tables import plural

MAX_DEPTH = 64  # levels of folders; each costs time in proportion to its depth, and stack
# Folders in which file managers, archives and file systems keep data of their own.
SYSTEM_FOLDERS = (
    "__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information",
)  # fmt: skip


def is_hidden(name: str) -> bool:
    """Return True for names that begin with a dot, and for folders of the system and of tar."""
    return name.startswith((".", "PaxHeader")) or name.casefold() in SYSTEM_FOLDERS


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageListing:
    """Image files of a folder, and the number of files that are not read, by ending."""

    files: tuple[Path, ...]
    passed_over: Mapping[str, int]


def find_images(folder: Path) -> ImageListing:
    """List all image files below `folder` that are not hidden, sorted by path.

    Other pictures and archives are counted in one warning.

    Raises:
        DataError: The folder does not exist or holds no image.
    """
    require_folder(folder)
    pictures = PictureFilter()
    paths = []
    for found in walk_pictures(folder, pictures):
        if isinstance(found, DataError):
            raise found
        if found is not None:
            paths.append(found)
    if not paths:
        raise no_images(folder, pictures)
    warn_passed_over(folder, pictures.passed_over)
    return ImageListing(files=tuple(paths), passed_over=pictures.passed_over)


def require_folder(folder: Path, hint: str = "name a folder of images") -> None:
    """Check that a folder exists.

    Raises:
        DataError: It does not; the hint is its likely neighbour, or else `hint`.
    """
    if folder.is_dir():
        return
    if os.path.lexists(folder):
        raise DataError(f"{folder} is not a folder", hint)
    hint = missing_path_hint(folder, _may_hold_images, hint, "")
    raise DataError(f"there is no folder {folder}", hint)


def _may_hold_images(folder: Path) -> bool:
    """Return True for a folder with pictures or folders, unlike a bundle, which has neither."""
    with suppress(OSError), os.scandir(folder) as entries:
        return any(
            entry.is_dir() or Path(entry.name).suffix.lower() in SUFFIXES
            for entry in islice(entries, MAX_ENTRIES)
        )
    return False


def no_images(folder: Path, pictures: PictureFilter) -> DataError:
    """Return the error of a folder in which a walk found no images."""
    others = pictures.passed_over
    return DataError(
        f"{folder} holds no images"
        + (f" that are read; it holds {passed_over_text(others)}" if others else ""),
        f"put files ending in {', '.join(sorted(SUFFIXES))} there",
    )


def list_images(folder: Path) -> tuple[Path, ...]:
    """Return the files of `find_images`."""
    return find_images(folder).files


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBatch:
    """Decoded images, and their positions in the list of paths."""

    images: UInt8Array
    """Shape (N, H, W, 3)."""
    positions: tuple[int, ...]


def read_batches(
    paths: Sequence[Path], preprocessing: Preprocessing, batch: int
) -> Iterator[ImageBatch]:
    """Decode `paths` in order, `batch` at a time; skip unreadable images with a warning.

    Raises:
        DataError: None of the images can be decoded.
    """
    images: list[UInt8Array] = []
    positions: list[int] = []
    skipped, doubtful = SkippedImages(), SkippedImages(action="using")
    for position, path in enumerate(paths):
        try:
            image = load_image(path, preprocessing)
        except ImageError as error:
            skipped.add(path, reason_of(error, path))
            if skipped.counts.total() == len(paths):
                counted = plural(len(paths), "image")
                raise DataError(f"none of {counted} can be decoded: {error}", error.hint) from error
            continue
        images.append(image)
        positions.append(position)
        if has_single_colour(image):
            doubtful.add(path, SINGLE_COLOUR)
        if len(images) == batch:
            yield ImageBatch(images=np.stack(images), positions=tuple(positions))
            images, positions = [], []
    skipped.report()
    doubtful.report()
    if images:
        yield ImageBatch(images=np.stack(images), positions=tuple(positions))


def walk_pictures(folder: Path, pictures: PictureFilter) -> Iterator[Path | DataError | None]:
    """Yield the image files below a folder in the order of their paths, following links.

    In place of any other file there is None, and in place of a folder that cannot be read the
    reason. Each folder is visited once within each folder at the top, which may hold one class.
    """
    start = os.path.realpath(folder)
    visited: set[tuple[tuple[str, ...], str]] = set()

    def below(parts: tuple[str, ...]) -> Iterator[Path | DataError | None]:
        root = Path(folder, *parts)
        if len(parts) > MAX_DEPTH:
            reason = f"{folder} has folders in more than {MAX_DEPTH} levels"
            yield DataError(reason, "sort the images by class")
            return
        top, real = parts[:1], os.path.realpath(root)
        if (top, real) in visited or (top and real == start):
            return
        visited.add((top, real))
        try:
            with os.scandir(root) as found:
                entries = sorted((entry.name, _is_folder(entry)) for entry in found)
        except OSError as error:
            reason = f"the folder {root} cannot be read: {error.strerror}"
            yield DataError(reason, "check its permissions")
            return
        for name, is_folder in entries:
            if is_folder and not is_hidden(name):
                yield from below((*parts, name))
            elif not is_folder:
                used = not is_hidden(name) and pictures.accepts(name, partial(_head, root, name))
                yield root / name if used else None

    return below(())


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _head(folder: Path, name: str) -> bytes | None:
    """Return the first bytes of a regular file, b"" of anything else; None without permission."""
    try:
        with open_regular(Path(folder, name)) as stream:
            return stream.read(HEAD_BYTES)
    except PermissionError:
        return None
    except OSError:
        return b""
