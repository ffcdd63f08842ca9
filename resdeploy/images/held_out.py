"""The validation images of a folder that has no `val/`: a share of each class.

The choice depends only on the seed and on the order of the files, so every command can repeat it.
Source: Kohavi 1995, "A study of cross-validation and bootstrap for accuracy estimation and model
selection" (stratified hold-out).
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from resdeploy.errors import DataError
from resdeploy.images.class_folders import File, LabelledImages, read_image_folder, split_folder

logger = logging.getLogger(__name__)

SHARE = 0.2  # of each class
MOST_HELD_OUT = 10_000  # the 95 % confidence interval of an accuracy is then at most 2 points wide
STREAM = 2  # last part of the seed, so that other random choices draw other numbers
# Usual names of the parts of a data set, which could be mistaken for classes.
PARTS = re.compile("train(ing)?|val(id(ation)?)?|dev|eval|test(ing)?|holdout", re.IGNORECASE)


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
    """Return the images for training and those for validation; each class keeps one to train."""
    generator = np.random.default_rng([seed, STREAM])
    labels, share = np.array(images.labels), min(SHARE, MOST_HELD_OUT / len(images.labels))
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        chosen[members[: min(max(1, round(share * len(members))), len(members) - 1)]] = True
    parts = [
        replace(
            images,
            files=tuple(images.files[position] for position in np.flatnonzero(mask)),
            labels=tuple(labels[mask].tolist()),
        )
        for mask in (~chosen, chosen)
    ]
    return parts[0], replace(parts[1], passed_over={})


def names_digest(images: LabelledImages[Any], folder: Path) -> str:
    """Return the SHA-256 of the names of files in `folder` and their classes.

    The content of the files is not part of it, because reading it would take as long as an epoch.
    """
    digest = hashlib.sha256()
    for file, label in zip(images.files, images.labels):
        digest.update(os.fsencode(f"{str(file).removeprefix(str(folder))}\0{label}\0"))
    return digest.hexdigest()


def read_validation(data: Path, held_out: HeldOut | None) -> LabelledImages[Path]:
    """Return the images in `data/val`, or in `data` without it.

    If `data` is the folder of a training with held-out images, return only these: the network has
    learned the others.
    """
    folder = split_folder(data, "val")
    if folder == data and held_out is not None:
        images = read_image_folder(split_folder(data, "train"))
        val = hold_out(images, held_out.seed)[1]
        if names_digest(val, data) == held_out.sha256:
            logger.info("%s: using only the %d images that the training held out, of %d",
                        data, len(val.files), len(images.files))  # fmt: skip
            return val
    return read_image_folder(folder)


def refuse_parts(classes: Iterable[str], folder: Path) -> None:
    """Raise a DataError if class folders of `folder` are parts of a data set instead."""
    parts = [name for name in classes if PARTS.fullmatch(name)]
    if len(parts) > 1:  # one may be a class, such as `valid` beside `invalid`
        raise DataError(
            f"{folder} has parts of a data set as classes: {', '.join(parts)}",
            "rename the part for training to train, and the part for validation to val",
        )
