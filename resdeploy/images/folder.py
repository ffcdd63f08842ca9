"""Files of images in a folder, and their decoding in batches."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resdeploy.errors import DataError, ImageError
from resdeploy.images.decode import SUFFIXES
from resdeploy.images.preprocessing import Preprocessing, UInt8Array, load_image

logger = logging.getLogger(__name__)

# Folders in which file managers, archives and file systems keep data of their own.
SYSTEM_FOLDERS = (
    "__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information",
)  # fmt: skip


def is_hidden(name: str) -> bool:
    """Return True for names that begin with a dot, and for folders of the system."""
    return name.startswith(".") or name.casefold() in SYSTEM_FOLDERS


def list_images(folder: Path) -> tuple[Path, ...]:
    """Return all image files below `folder` that are not hidden, sorted by path.

    Raises:
        DataError: The folder does not exist or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder", "name a folder of images")
    paths = tuple(sorted(_walk(folder)))
    if not paths:
        raise DataError(
            f"{folder} holds no images", f"put files ending in {', '.join(sorted(SUFFIXES))} there"
        )
    return paths


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBatch:
    """Decoded images, and their positions in the list of paths."""

    images: UInt8Array
    """Shape (N, image_size, image_size, 3)."""
    positions: tuple[int, ...]


def read_batches(
    paths: Sequence[Path], preprocessing: Preprocessing, batch: int
) -> Iterator[ImageBatch]:
    """Decode `paths` in order, `batch` at a time; skip unreadable images with a warning."""
    images: list[UInt8Array] = []
    positions: list[int] = []
    for position, path in enumerate(paths):
        try:
            images.append(load_image(path, preprocessing))
            positions.append(position)
        except ImageError as error:
            logger.warning("skipped: %s", error)
        if len(images) == batch:
            yield ImageBatch(images=np.stack(images), positions=tuple(positions))
            images, positions = [], []
    if images:
        yield ImageBatch(images=np.stack(images), positions=tuple(positions))


def _walk(folder: Path) -> Iterator[Path]:
    """Yield image files that are not hidden, following links.

    Each folder is visited once within each folder at the top, which may hold one class.
    """
    start = os.path.realpath(folder)
    visited: set[tuple[tuple[str, ...], str]] = set()
    for root, folders, files in os.walk(folder, onerror=_raise_unreadable, followlinks=True):
        top, real = Path(root).relative_to(folder).parts[:1], os.path.realpath(root)
        if (top, real) in visited or (top and real == start):
            folders.clear()
            continue
        visited.add((top, real))
        folders[:] = [name for name in folders if not is_hidden(name)]
        for name in files:
            path = Path(root, name)
            if path.suffix.lower() in SUFFIXES and not is_hidden(name):
                yield path


def _raise_unreadable(error: OSError) -> None:
    raise DataError(
        f"the folder {error.filename} cannot be read: {error.strerror}", "check its permissions"
    ) from error
