"""Folders of labelled images: `DATA/train/CLASS/*.jpg` and `DATA/val/CLASS/*.jpg`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, TypeVar

from resdeploy.errors import DataError
from resdeploy.images.folder import find_images
from resdeploy.tables import plural

logger = logging.getLogger(__name__)

NO_FOLDER = "in no class folder"

File_co = TypeVar("File_co", covariant=True)
File = TypeVar("File")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImages(Generic[File_co]):
    """Image files with their classes."""

    classes: tuple[str, ...]
    files: tuple[File_co, ...]
    """Paths, or other names of files."""
    labels: tuple[int, ...]
    """Index of each file's class in `classes`."""
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """Number of other pictures in the folder, by the reason why they are not read."""


def read_image_folder(folder: Path) -> LabelledImages[Path]:
    """Return the images in the sub-folders of `folder`, each of which holds one class.

    Raises:
        DataError: The folder is missing, has no images in sub-folders, or has an empty sub-folder.
    """
    listing = find_images(folder)
    paths = listing.files
    classes = tuple(sorted(entry.name for entry in folder.glob("[!.]*") if entry.is_dir()))
    files = tuple(path for path in paths if path.parent != folder)
    if not files:
        raise DataError(
            f"the images in {folder} have no labels", "sort them into one sub-folder per class"
        )
    index = {name: position for position, name in enumerate(classes)}
    labels = tuple(index[path.relative_to(folder).parts[0]] for path in files)
    if missing := set(index.values()).difference(labels):
        raise DataError(
            f"the class folder {folder / classes[min(missing)]} holds no images",
            "fill it or remove it",
        )
    passed_over = dict(listing.passed_over)
    if outside := len(paths) - len(files):
        passed_over[NO_FOLDER] = outside
        logger.warning("%s: passed over %s in no class folder", folder, plural(outside, "image"))
    return LabelledImages(classes=classes, files=files, labels=labels, passed_over=passed_over)


def split_folder(data: Path, split: str) -> Path:
    """Return `data/split` if it exists, else `data` itself."""
    return data / split if (data / split).is_dir() else data


def match_labels(images: LabelledImages[File], labels: Sequence[str]) -> LabelledImages[File]:
    """Replace the class indices of a folder by those of a model with these `labels`.

    Folders are matched by name. If no name is a label (for example WordNet ids) and there are as
    many folders as labels, they are matched by their order.

    Raises:
        DataError: The name of a folder is not a label.
    """
    unknown = [name for name in images.classes if name not in labels]
    if not unknown:
        table = [labels.index(name) for name in images.classes]
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
    matched = tuple(table[label] for label in images.labels)
    return replace(images, classes=tuple(labels), labels=matched)
