"""Folders of images: `DATA/train/CLASS/*.jpg` and `DATA/val/CLASS/*.jpg`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from resdeploy.errors import DataError, ImageError
from resdeploy.images.decode import SUFFIXES
from resdeploy.images.preprocessing import Preprocessing, UInt8Array, load_image

logger = logging.getLogger(__name__)

File_co = TypeVar("File_co", covariant=True)
File = TypeVar("File")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImages(Generic[File_co]):
    """Image files with the index of each one's class in `classes`."""

    classes: tuple[str, ...]
    files: tuple[File_co, ...]
    """Paths, or other names of files."""
    labels: tuple[int, ...]


def list_images(folder: Path) -> tuple[Path, ...]:
    """Return every image file below `folder` that is not hidden, sorted by path.

    Raises:
        DataError: `folder` does not exist or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder", "name a folder of images")
    paths = tuple(sorted(_walk(folder)))
    if not paths:
        raise DataError(
            f"{folder} holds no images", f"put files ending in {', '.join(sorted(SUFFIXES))} there"
        )
    return paths


def read_image_folder(folder: Path) -> LabelledImages[Path]:
    """Return the images of `folder`, labelled by the name of their sub-folder.

    Raises:
        DataError: `folder` is missing, has no images in class folders, or has an empty class
            folder.
    """
    paths = list_images(folder)
    classes = tuple(
        entry.name
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
    )
    index = {name: position for position, name in enumerate(classes)}
    labelled = [
        (path, index[parts[0]])
        for path in paths
        if len(parts := path.relative_to(folder).parts) > 1
    ]
    if not labelled:
        raise DataError(
            f"the images in {folder} have no labels", "sort them into one sub-folder per class"
        )
    if missing := set(index.values()) - {label for _, label in labelled}:
        raise DataError(
            f"the class folder {folder / classes[min(missing)]} holds no images",
            "fill it or remove it",
        )
    return LabelledImages(
        classes=classes,
        files=tuple(path for path, _ in labelled),
        labels=tuple(label for _, label in labelled),
    )


def split_folder(data: Path, split: str) -> Path:
    """Return `data/split` if it exists, else `data` itself."""
    return data / split if (data / split).is_dir() else data


def match_labels(images: LabelledImages[File], labels: Sequence[str]) -> LabelledImages[File]:
    """Return the same images with the model's class indices instead of the folder's.

    Folders are matched by name. If no name is a label (for example WordNet ids) and there are as
    many folders as labels, they are matched by their order.

    Raises:
        DataError: A folder's name is not a label.
    """
    unknown = [name for name in images.classes if name not in labels]
    if not unknown:
        table = [list(labels).index(name) for name in images.classes]
    elif len(unknown) == len(images.classes) == len(labels):
        logger.warning(
            "folder names such as %r are not labels: the %d folders are matched by their order",
            unknown[0], len(labels),
        )  # fmt: skip
        table = list(range(len(labels)))
    else:
        raise DataError(
            f"the folder {unknown[0]!r} is not one of the model's {len(labels)} labels",
            "name the folders as in labels.txt, or provide one folder for every class",
        )
    return LabelledImages(
        classes=tuple(labels),
        files=images.files,
        labels=tuple(table[label] for label in images.labels),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBatch:
    """Decoded images with their positions in the list of paths."""

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
    """Yield image files, also behind links; skip hidden files and folders that a link repeats."""
    visited: set[str] = set()
    for root, folders, files in os.walk(folder, onerror=_raise_unreadable, followlinks=True):
        real = os.path.realpath(root)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(root, name)
            if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                yield path


def _raise_unreadable(error: OSError) -> None:
    raise DataError(
        f"the folder {error.filename} cannot be read: {error.strerror}", "check its permissions"
    ) from error
