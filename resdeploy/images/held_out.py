"""The validation images of a folder that has no `val/`: a share of each class.

The choice depends only on the seed and on the order of the files, so every command can repeat it.
Source: Kohavi 1995, "A study of cross-validation and bootstrap for accuracy estimation and model
selection" (stratified hold-out).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from resdeploy.errors import DataError
from resdeploy.images.class_folders import File, LabelledImages

SHARE = 0.2  # of each class
MOST_HELD_OUT = 10_000  # the 95 % confidence interval of an accuracy is then at most 2 points wide
STREAM = 2  # last part of the seed, so that other random choices draw other numbers
# Usual names of the parts of a data set, which could be mistaken for classes.
PARTS = re.compile("train(ing)?|val(id(ation)?)?|dev|eval|test(ing)?|holdout", re.IGNORECASE)


def hold_out(
    images: LabelledImages[File], seed: int, folder: Path
) -> tuple[LabelledImages[File], LabelledImages[File]]:
    """Divide the images of `folder` into those for training and those for validation.

    Raises:
        DataError: Every class has only one image.
    """
    generator = np.random.default_rng([seed, STREAM])
    labels, share = np.array(images.labels), min(SHARE, MOST_HELD_OUT / len(images.labels))
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        chosen[members[: min(max(1, round(share * len(members))), len(members) - 1)]] = True
    if not chosen.any():
        raise DataError(
            f"{folder} has only one image per class, so none can validate",
            "add images, or a folder val with others",
        )
    parts = [
        replace(
            images,
            files=tuple(images.files[position] for position in np.flatnonzero(mask)),
            labels=tuple(labels[mask].tolist()),
        )
        for mask in (~chosen, chosen)
    ]
    return parts[0], replace(parts[1], passed_over={})


def refuse_parts(classes: Iterable[str], folder: Path) -> None:
    """Raise a DataError if class folders of `folder` are parts of a data set instead."""
    parts = [name for name in classes if PARTS.fullmatch(name)]
    if len(parts) > 1:  # one may be a class, such as `valid` beside `invalid`
        raise DataError(
            f"{folder} has parts of a data set as classes: {', '.join(parts)}",
            "rename the part for training to train, and the part for validation to val",
        )
