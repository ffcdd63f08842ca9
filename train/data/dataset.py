"""Training images: decode, augment, batches of uint8.

All randomness comes from (seed, epoch, position), so that a resumed run, or one with another
number of workers, sees the very same pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from resdeploy.errors import DataError, ImageError
from resdeploy.images.folder import LabelledImages, match_labels, read_image_folder
from resdeploy.images.preprocessing import Preprocessing, UInt8Array, load_image
from resdeploy.train.data.augment import Augmentation, augment
from resdeploy.train.data.shards import ImageFile, content_of, read_shards, shards_in

MOST_WORKERS = 16  # of one process: batches come back to it one at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSplits:
    """Labelled images to train on, and others to measure accuracy with."""

    train: LabelledImages[ImageFile]
    val: LabelledImages[ImageFile]


def read_splits(data: Path) -> DataSplits:
    """`data/train` and `data/val`, with the same classes: class folders, or tar files.

    Raises:
        DataError: a folder is missing, empty or unlabelled, or the classes do not fit.
    """
    for split in ("train", "val"):
        if not (data / split).is_dir():
            raise DataError(
                f"{data} has no folder {split!r}",
                "sort the images as train/CLASS/*.jpg and val/CLASS/*.jpg",
            )
    train, val = _read_images(data / "train"), _read_images(data / "val")
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


def _read_images(folder: Path) -> LabelledImages[ImageFile]:
    return read_shards(folder) if shards_in(folder) else read_image_folder(folder)


@dataclass(frozen=True, slots=True)
class Batch:
    """What a step of training sees."""

    images: Tensor
    """uint8 (N, H, W, 3); N may be 0 when no file could be decoded."""
    labels: Tensor
    """int64 (N,)."""
    mirrored: Tensor
    """bool (N,): which images are to be mirrored, where that costs nothing."""
    positions: tuple[int, ...]
    """Of the N images in the data."""
    unreadable: tuple[int, ...]
    """Positions of files that could not be decoded."""

    def to(self, device: torch.device) -> Batch:
        """On a device, where the images are mirrored that have to be."""
        images = self.images.to(device, non_blocking=True)
        mirrored = self.mirrored.to(device, non_blocking=True)
        if len(images) and bool(self.mirrored.any()):
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(2), images)
        labels = self.labels.to(device, non_blocking=True)
        return replace(self, images=images, labels=labels, mirrored=torch.zeros_like(mirrored))

    def pin_memory(self) -> Batch:
        """In memory that a GPU reads by itself; the loader calls this."""
        return replace(
            self,
            images=self.images.pin_memory(),
            labels=self.labels.pin_memory(),
            mirrored=self.mirrored.pin_memory(),
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """One image; the pixels are None where its file cannot be decoded."""

    pixels: UInt8Array | None
    label: int
    position: int
    mirrored: bool = False


class EpochImages(Dataset[Sample]):
    """The images of one epoch, augmented; without an augmentation, as they are deployed."""

    def __init__(
        self,
        images: LabelledImages[ImageFile],
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
        return len(self.images.files)

    def __getitem__(self, position: int) -> Sample:
        label = self.images.labels[position]
        try:
            content = content_of(self.images.files[position])
            if self.augmentation is None:
                return Sample(load_image(content, self.preprocessing), label, position)
            generator = np.random.default_rng([self.seed, self.epoch, position])
            mirrored = self.augmentation.flip and generator.random() < 0.5
            size = self.preprocessing.image_size
            pixels = augment(content, size, self.augmentation, generator)
        except ImageError:
            return Sample(None, label, position)
        return Sample(pixels, label, position, mirrored)


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """In which order an epoch goes through the data, and which part of it this process takes."""

    batch_size: int
    """Images of a step, of all processes together."""
    shuffle: bool
    """In an order of the epoch's own, without a last batch that is not full."""
    start: int = 0
    """Steps that are done already."""
    rank: int = 0
    processes: int = 1
    workers: int = 0
    """Processes that decode for this one; 0: it decodes itself."""

    def batches(self, images: EpochImages) -> list[list[int]]:
        """The positions that this process takes, step by step; together they miss none."""
        count = len(images)
        if self.shuffle:
            order = np.random.default_rng([images.seed, images.epoch]).permutation(count)
            order = order[: count // self.batch_size * self.batch_size or count]
        else:
            order = np.arange(count)
        whole = range(self.start * self.batch_size, len(order), self.batch_size)
        steps = [order[first : first + self.batch_size] for first in whole]
        return [step[self.rank :: self.processes].tolist() for step in steps]


def default_workers() -> int:
    """On a CPU none: decoding in other processes would take the cores from the network."""
    if not torch.cuda.is_available():
        return 0
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(MOST_WORKERS, max(1, cores - 1))


def run_batches(epochs: Sequence[EpochImages], walk: Walk) -> Iterator[Batch]:
    """One epoch after the other, the first from where `walk` starts.

    The processes that decode stay for all of them, and are ahead across the end of an epoch.
    """
    yield from DataLoader(
        _Epochs(epochs),
        batch_sampler=_Places(epochs, walk),
        collate_fn=_collate,
        num_workers=walk.workers,
        pin_memory=torch.cuda.is_available(),  # where a GPU reads by itself
    )


Place = tuple[int, int]
"""Which epoch, and which position in it."""


class _Epochs(Dataset[Sample]):
    def __init__(self, epochs: Sequence[EpochImages]) -> None:
        self.epochs = epochs

    def __getitem__(self, place: Place) -> Sample:
        epoch, position = place
        return self.epochs[epoch][position]


@dataclass(frozen=True, slots=True)
class _Places:
    """Batches of places; an epoch's order is drawn when its turn comes."""

    epochs: Sequence[EpochImages]
    walk: Walk

    def __iter__(self) -> Iterator[list[Place]]:
        for epoch, images in enumerate(self.epochs):
            walk = self.walk if epoch == 0 else replace(self.walk, start=0)
            for positions in walk.batches(images):
                yield [(epoch, position) for position in positions]


def _collate(samples: list[Sample]) -> Batch:
    good = [sample for sample in samples if sample.pixels is not None]
    images = [torch.from_numpy(sample.pixels) for sample in good]
    return Batch(
        images=torch.stack(images) if images else torch.empty((0, 0, 0, 3), dtype=torch.uint8),
        labels=torch.tensor([sample.label for sample in good], dtype=torch.int64),
        mirrored=torch.tensor([sample.mirrored for sample in good], dtype=torch.bool),
        positions=tuple(sample.position for sample in good),
        unreadable=tuple(sample.position for sample in samples if sample.pixels is None),
    )
