"""Training images: decode, augment, batches of uint8.

All randomness comes from (seed, epoch, position), so that a resumed run, or one with another
number of workers, sees the very same pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from resdeploy.errors import DataError, ImageError
from resdeploy.imagefolder import LabelledImages, match_labels, read_image_folder
from resdeploy.images import read_rgb
from resdeploy.preprocessing import Preprocessing, UInt8Array, prepare
from resdeploy.train.augment import Augmentation, augment


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSplits:
    """Labelled images to train on, and others to measure accuracy with."""

    train: LabelledImages
    val: LabelledImages


def read_splits(data: Path) -> DataSplits:
    """`data/train` and `data/val`, with the same classes.

    Raises:
        DataError: a folder is missing, empty or unlabelled, or the classes do not fit.
    """
    for split in ("train", "val"):
        if not (data / split).is_dir():
            raise DataError(
                f"{data} has no folder {split!r}",
                "sort the images as train/CLASS/*.jpg and val/CLASS/*.jpg",
            )
    train, val = read_image_folder(data / "train"), read_image_folder(data / "val")
    if len(train.classes) == 1:
        raise DataError(
            f"{data / 'train'} has one class only, {next(iter(train.classes))!r}",
            "a classifier needs at least two class folders",
        )
    if unknown := sorted(set(val.classes) - set(train.classes)):
        raise DataError(
            f"{data / 'val'} has the class {unknown[0]!r}, which {data / 'train'} lacks",
            "use the same class folders in both",
        )
    return DataSplits(train=train, val=match_labels(val, train.classes))


@dataclass(frozen=True, slots=True)
class Batch:
    """What a step of training sees."""

    images: Tensor
    """uint8 (N, H, W, 3); N may be 0 when no file could be decoded."""
    labels: Tensor
    """int64 (N,)."""
    unreadable: tuple[int, ...]
    """Positions of files that could not be decoded."""


Sample = tuple[UInt8Array | None, int, int]


class EpochImages(Dataset[Sample]):
    """The images of one epoch, augmented; without an augmentation, as they are deployed."""

    def __init__(
        self,
        images: LabelledImages,
        preprocessing: Preprocessing,
        augmentation: Augmentation | None = None,
        *,
        seed: int = 0,
        epoch: int = 0,
    ) -> None:
        self.images = images
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.images.paths)

    def __getitem__(self, position: int) -> Sample:
        label = self.images.labels[position]
        try:
            picture = read_rgb(self.images.paths[position])
        except ImageError:
            return None, label, position
        if self.augmentation is None:
            return prepare(picture, self.preprocessing), label, position
        generator = np.random.default_rng([self.seed, self.epoch, position])
        size = self.preprocessing.image_size
        return augment(picture, size, self.augmentation, generator), label, position


def epoch_batches(
    dataset: EpochImages, batch_size: int, *, shuffle: bool, workers: int = 0
) -> Iterator[Batch]:
    """One walk over `dataset`; shuffled walks leave out a last batch that is not full."""
    if shuffle:
        order = np.random.default_rng([dataset.seed, dataset.epoch]).permutation(len(dataset))
        whole = len(order) // batch_size * batch_size
        order = order[: whole or len(order)]
    else:
        order = np.arange(len(dataset))
    batches = [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]
    yield from DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=_collate,
        num_workers=workers,
    )


def _collate(samples: list[Sample]) -> Batch:
    good = [(pixels, label) for pixels, label, _ in samples if pixels is not None]
    images = [torch.from_numpy(pixels) for pixels, _ in good]
    return Batch(
        torch.stack(images) if images else torch.empty((0, 0, 0, 3), dtype=torch.uint8),
        torch.tensor([label for _, label in good], dtype=torch.int64),
        tuple(position for pixels, _, position in samples if pixels is None),
    )
