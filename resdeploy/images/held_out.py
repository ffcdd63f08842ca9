"""The validation images of a folder that has no `val/`: a share of each class.

The choice depends only on the seed and on the order of the files, so that every command can repeat
it. Source: Kohavi 1995, "A study of cross-validation and bootstrap for accuracy estimation and
model selection" (stratified hold-out).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from resdeploy.errors import DataError
from resdeploy.images.class_folders import File, LabelledImages

logger = logging.getLogger(__name__)

SHARE = 0.2  # of each class
# More images make validation slower than they make it more certain: 95 % of the accuracies measured
# on 10,000 images lie within 1 point of that on all images.
MOST_HELD_OUT = 10_000
STREAM = 2  # last part of the seed, so that other random choices draw other numbers
# Usual names of the parts of a data set, which could be mistaken for classes.
PARTS = frozenset(
    {"train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing", "holdout"}
)


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
            f"{folder} has only one image per class, so none can be held out for validation",
            "add images, or a folder val with others",
        )
    logger.info(
        "no validation images of its own in %s: training on %d images and validating on %d, "
        "%.0f %% of each class, chosen with seed %d",
        folder, (~chosen).sum(), chosen.sum(), 100 * share, seed,
    )  # fmt: skip
    train, val = (
        replace(
            images,
            files=tuple(images.files[position] for position in positions),
            labels=tuple(images.labels[position] for position in positions),
        )
        for positions in (np.flatnonzero(~chosen), np.flatnonzero(chosen))
    )
    return train, replace(val, passed_over={})


def refuse_parts(classes: Iterable[str], folder: Path) -> None:
    """Raise a DataError if the class folders of `folder` are parts of a data set instead."""
    parts = [name for name in classes if name.casefold() in PARTS]
    if len(parts) > 1:  # one may be a class, such as `valid` beside `invalid`
        raise DataError(
            f"the folders {' and '.join(map(repr, parts))} in {folder} are parts of a data set, "
            "not classes",
            "name the part for training train, and the part for validation val",
        )
