"""Folders of labelled images: `DATA/train/CLASS/*.jpg` and `DATA/val/CLASS/*.jpg`.

Without `val/`, a share of each class is held out. The choice depends only on a seed and on the
names of the files, so every command can repeat it. Source: Kohavi 1995, "A study of
cross-validation and bootstrap for accuracy estimation and model selection" (stratified hold-out).
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from resdeploy.errors import DataError, ResdeployError, one_line_reason
from resdeploy.filesystem import read_limited
from resdeploy.images.class_mapping import (
    is_guess,
    log_once,
    map_classes,
    similar_names,
    sort_classes,
)
from resdeploy.images.folder import find_images, is_hidden, require_folder
from resdeploy.readable_text import readable
from resdeploy.tables import plural

logger = logging.getLogger(__name__)

MAX_LABELS_BYTES = 4 << 20
NO_FOLDER = "in no class folder"
STRUCTURE = "store the images as train/CLASS/*.jpg and val/CLASS/*.jpg, or all as CLASS/*.jpg"
SHARE = 0.2  # of each class
MOST_HELD_OUT = 10_000  # the 95 % confidence interval of an accuracy is then at most 2 points wide
# Usual names of the parts of a data set, which could be mistaken for classes.
PARTS = re.compile("train(ing)?|val(id(ation)?)?|dev|eval|test(ing)?|holdout", re.IGNORECASE)

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
    guessed: bool = False
    """True if the order of the classes is a guess, see `class_mapping`."""

    def relabelled(self, classes: Sequence[str], outputs: Sequence[int]) -> LabelledImages[File_co]:
        """Return the files with other `classes`: class k of this object is `outputs[k]` of them."""
        labels = tuple(outputs[label] for label in self.labels)
        return replace(self, classes=tuple(classes), labels=labels)


def read_image_folder(folder: Path) -> LabelledImages[Path]:
    """Return the images in the sub-folders of `folder`, each of which holds one class.

    Raises:
        DataError: The folder is missing, or as `label_images`.
    """
    listing = find_images(folder)
    return label_images(folder, listing.files, listing.passed_over)


def label_images(
    folder: Path, paths: Sequence[Path], passed_over: Mapping[str, int] = {}
) -> LabelledImages[Path]:
    """Return the images `paths` below `folder` with the class of their sub-folder.

    Raises:
        DataError: There are no images in sub-folders, a sub-folder is empty, or links lead nowhere
            or from two sub-folders to the same folder.
    """
    entries = [entry for entry in folder.iterdir() if not is_hidden(entry.name)]
    if broken := [entry for entry in entries if entry.is_symlink() and not entry.exists()]:
        raise DataError(f"the link {broken[0]} leads nowhere", "mend it or remove it")
    classes = sort_classes([entry.name for entry in entries if entry.is_dir()])
    files = tuple(path for path in paths if path.parent != folder)
    if not files:
        raise DataError(
            f"the images in {folder} have no labels", "sort them into one sub-folder per class"
        )
    if beside := [path.name for path in paths if path.parent == folder]:
        logger.warning(
            "not using %s beside the class folders of %s, such as %s",
            plural(len(beside), "image"), folder, beside[0],
        )  # fmt: skip
    index = {name: position for position, name in enumerate(classes)}
    labels = tuple(index[path.relative_to(folder).parts[0]] for path in files)
    if missing := set(index.values()).difference(labels):
        raise DataError(
            f"the class folder {folder / classes[min(missing)]} holds no images",
            "fill it or remove it",
        )
    _refuse_shared_folders(files, labels, classes)
    if similar := similar_names(classes):
        logger.warning("the folders '%s' and '%s' count as two classes", *map(readable, similar))
    return LabelledImages(
        classes=tuple(map(readable, classes)),
        files=files,
        labels=labels,
        passed_over={**passed_over, NO_FOLDER: len(beside)} if beside else dict(passed_over),
    )


def require_data(data: Path) -> None:
    """Check that the folder of a data set exists; raise a DataError otherwise."""
    require_folder(data, STRUCTURE)


def split_folder(data: Path, split: str) -> Path:
    """Return `data/split` if it exists in upper or lower case, else `data` itself.

    Raises:
        DataError: Several folders have this name.
    """
    entries = sorted(data.iterdir()) if data.is_dir() else []
    found = [entry for entry in entries if entry.name.casefold() == split and entry.is_dir()]
    if len(found) > 1:
        raise DataError(
            f"{data} has the folders {found[0].name!r} and {found[1].name!r}",
            "merge or rename them",
        )
    return found[0] if found else data


def validation_folder(data: Path) -> Path:
    """Return `data/val`, and log that it is used, or else `data` itself.

    Raises:
        DataError: Several folders have this name.
    """
    folder = split_folder(data, "val")
    if folder != data:
        log_once(f"using the images in {folder}")
    return folder


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The record of held-out images, with which other commands find them again."""

    seed: int
    sha256: str
    """Digest of their names and classes; see `names_digest`."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; at least 0 is needed")


def hold_out(
    images: LabelledImages[File], seed: int
) -> tuple[LabelledImages[File], LabelledImages[File]]:
    """Return the images for training and those for validation; each class keeps one to train.

    A class is ordered by the hashes of its files' names, and its first files validate. So a file
    that is added or removed moves at most one or two others, of its own class.
    """
    names = [str(file) for file in images.files]
    # Of the names below the folder, so that its place does not matter.
    start = os.path.commonprefix(names).rfind("/") + 1  # noqa: RUF071 - cut at a slash
    members: dict[int, list[tuple[bytes, int]]] = {}
    for position, (name, label) in enumerate(zip(names, images.labels)):
        key = hashlib.sha256(os.fsencode(f"{seed}\0{name[start:]}")).digest()
        members.setdefault(label, []).append((key, position))
    share, chosen = min(SHARE, MOST_HELD_OUT / len(names)), set[int]()
    for found in members.values():
        count = min(max(1, round(share * len(found))), len(found) - 1)
        chosen.update(position for _, position in sorted(found)[:count])
    parts = [
        replace(
            images,
            files=tuple(images.files[position] for position in part),
            labels=tuple(images.labels[position] for position in part),
        )
        for part in (sorted({*range(len(names))} - chosen), sorted(chosen))
    ]
    return parts[0], replace(parts[1], passed_over={})


def names_digest(images: LabelledImages[Any], folder: Path) -> str:
    """Return the SHA-256 of the names of files in `folder/train` or `folder` and their classes.

    The content of the files is not part of it, because reading it would take as long as an epoch.
    """
    digest = hashlib.sha256()
    train = f"{split_folder(folder, 'train')}/"  # also if the user names `folder/train`
    for file, label in zip(images.files, images.labels):
        name = str(file)
        place = name.removeprefix(train if name.startswith(train) else f"{folder}/")
        digest.update(os.fsencode(f"{place}\0{label}\0"))
    return digest.hexdigest()


def divide_again(
    images: LabelledImages[File], folder: Path, record: HeldOut
) -> tuple[LabelledImages[File], LabelledImages[File]] | None:
    """Return the parts of `images` in `folder` as a training divided them; None for others."""
    parts = hold_out(images, record.seed)
    return parts if names_digest(parts[1], folder) == record.sha256 else None


def read_validation(data: Path, held_out: HeldOut | None) -> LabelledImages[Path]:
    """Return the images in `data/val`, or in `data` without it.

    If `data` is the folder of a training with held-out images, return only these: the network has
    learned the others. If it may be that folder with other files, log a warning.
    """
    folder = validation_folder(data)
    if folder != data or held_out is None:
        return read_image_folder(folder)
    images = read_image_folder(split_folder(data, "train"))
    if parts := divide_again(images, data, held_out):
        logger.info("%s: using only the %d images that the training held out, of %d",
                    data, len(parts[1].files), len(images.files))  # fmt: skip
        return parts[1]
    logger.warning(
        "%s does not have the files that the training divided, so all its images are used: if the "
        "network has learned some of them, their accuracy is too high", data,
    )  # fmt: skip
    return images


def refuse_parts(classes: Iterable[str], folder: Path) -> None:
    """Raise a DataError if class folders of `folder` are parts of a data set instead."""
    parts = [name for name in classes if PARTS.fullmatch(name)]
    if len(parts) > 1:  # one may be a class, such as `valid` beside `invalid`
        raise DataError(
            f"{folder} has parts of a data set as classes: {', '.join(parts)}",
            "rename the part for training to train, and the part for validation to val",
        )


def match_labels(
    images: LabelledImages[File],
    labels: Sequence[str],
    *,
    guess: bool = True,
    owner: str = "the model",
) -> LabelledImages[File]:
    """Replace the class indices of a folder by those of a model with these `labels`.

    Raises:
        DataError: A folder fits no label, or it is not clear which; see `map_classes`.
    """
    outputs = map_classes(images.classes, labels, guess=guess, owner=owner)
    guessed = is_guess(images.classes, labels)
    return replace(images.relabelled(labels, outputs), guessed=guessed)


def read_labels(path: Path, error_type: type[ResdeployError]) -> tuple[str, ...]:
    """Return the lines of a text file, without spaces around them and empty lines at the end.

    Raises:
        ResdeployError: An `error_type`, if the file cannot be read as UTF-8.
    """
    hint = "name a UTF-8 text file with one class name per line"
    data = read_limited(path, MAX_LABELS_BYTES, error_type, hint)
    try:
        # Not `splitlines`, which also divides names at characters such as U+2028.
        text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise error_type(f"{path} cannot be read: {one_line_reason(error)}", hint) from error
    return tuple(readable(line.strip()) for line in text.rstrip().split("\n"))


def _refuse_shared_folders(
    files: Sequence[Path], labels: Sequence[int], classes: Sequence[str]
) -> None:
    """Raise a DataError if links lead from two classes to the same folder."""
    classes_of: dict[Path, int] = {}
    for file, label in zip(files, labels):
        classes_of.setdefault(file.parent, label)
    owners: dict[str, int] = {}
    for parent, label in classes_of.items():
        real = os.path.realpath(parent)
        if (other := owners.setdefault(real, label)) != label:
            raise DataError(
                f"the class folders '{classes[other]}' and '{classes[label]}' both hold the images "
                f"in {real}",
                "remove one of the links",
            )
