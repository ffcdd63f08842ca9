"""Batches of decoded and augmented training images, as uint8.

All randomness depends only on seed, epoch and position, so a resumed run and a run with another
number of workers get exactly the same pixels.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, get_worker_info

from resdeploy.errors import DataError, ImageError, TrainingError
from resdeploy.images.class_folders import (
    STRUCTURE,
    LabelledImages,
    hold_out,
    match_labels,
    read_image_folder,
    refuse_parts,
    require_data,
    split_folder,
)
from resdeploy.images.folder import is_hidden
from resdeploy.images.loading import load_image
from resdeploy.images.preprocessing import Preprocessing, UInt8Array
from resdeploy.images.skipped import reason_of
from resdeploy.train.data.augment import Augmentation, augment
from resdeploy.train.data.shards import ImageFile, find_shards, image_content, read_shards
from resdeploy.train.data.workers import (
    BATCHES_AHEAD,
    check_alive,
    outlive_first_signal,
    unchanged_child_handler,
)

logger = logging.getLogger(__name__)

SECONDS_PER_BATCH = 600  # after which a storage that does not respond is an error
SECONDS_PER_CHECK = 5  # between checks whether all workers are alive


@dataclass(frozen=True, slots=True)
class DataSplits:
    """The labelled images for training and for validation."""

    train: LabelledImages[ImageFile]
    val: LabelledImages[ImageFile]
    held_out: bool = False
    """True if `val` was held out from the images for training; see `hold_out`."""

    def relabelled(self, classes: Sequence[str], outputs: Sequence[int]) -> DataSplits:
        """Return the images with other classes; see `LabelledImages.relabelled`."""
        train, val = (part.relabelled(classes, outputs) for part in (self.train, self.val))
        return replace(self, train=train, val=val)


def read_splits(data: Path, seed: int = 0) -> DataSplits:
    """Read `data/train` and `data/val`, which hold class folders or tar files.

    Without `val`, a share of each class in `train` is held out. Without both, `data` is `train`.

    Raises:
        DataError: A folder is missing, empty or unlabelled, or `val` has an unknown class.
    """
    train_folder, val_folder = (split_folder(data, split) for split in ("train", "val"))
    require_data(data)
    if train_folder == data and val_folder != data:
        raise DataError(f"{data} has no folder 'train'", STRUCTURE)
    train = _read_images(train_folder)
    if train_folder == data:
        refuse_parts(train.classes, data)
    if len(train.classes) == 1:
        raise DataError(
            f"{train_folder} has only one class, '{train.classes[0]}'", "add a second class folder"
        )
    if val_folder == data:
        folders = {entry.name for entry in data.iterdir() if entry.is_dir()} - {train_folder.name}
        others = ", ".join(sorted(name for name in folders if not is_hidden(name)))
        if others and train_folder != data:
            logger.warning("not using the folders beside %s: %s", train_folder, others)
        splits = DataSplits(*hold_out(train, seed), held_out=True)
        if not splits.val.files:
            raise DataError(
                f"{train_folder} has only one image per class, so none can validate",
                "add images, or a folder val with others",
            )
        logger.info("there is no folder 'val' in %s, so a part of each class validates: %d of %d "
                    "images, chosen with seed %d", data, len(splits.val.files), len(train.files),
                    seed)  # fmt: skip
        return splits
    val = _read_images(val_folder)
    try:
        val = match_labels(val, train.classes, guess=False, owner=str(train_folder))
    except DataError as error:
        raise DataError(
            f"{val_folder} does not fit: {error}", "use the same class folders in both"
        ) from error
    return DataSplits(train=train, val=val)


@dataclass(frozen=True, slots=True)
class Batch:
    """The images of one step."""

    images: Tensor
    """Pixels, uint8 (N, H, W, 3); N is 0 if no file could be decoded."""
    labels: Tensor
    """Class numbers, int64 (N,)."""
    mirrored: Tensor
    """Images that `to` will mirror, bool (N,)."""
    positions: tuple[int, ...]
    """Indices of the N images in the data."""
    unreadable: Mapping[int, str]
    """Reasons why files could not be decoded, by their indices."""

    def to(self, device: torch.device) -> Batch:
        """Return a copy on `device`, and mirror the images there."""
        images = self.images.to(device, non_blocking=True)
        mirrored = self.mirrored.to(device, non_blocking=True)
        if len(images) and bool(self.mirrored.any()):
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(2), images)
        labels = self.labels.to(device, non_blocking=True)
        return replace(self, images=images, labels=labels, mirrored=torch.zeros_like(mirrored))

    def pin_memory(self) -> Batch:
        """Return a copy in page-locked memory; the DataLoader calls this."""
        names = ("images", "labels", "mirrored")
        return replace(self, **{name: getattr(self, name).pin_memory() for name in names})


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of an epoch."""

    pixels: UInt8Array | None
    """Pixels, uint8 (H, W, 3); None if the file cannot be decoded."""
    label: int
    position: int
    """Index of the image in the data."""
    mirrored: bool = False
    error: str = ""
    """Reason why the file cannot be decoded."""


@dataclass(frozen=True, eq=False)
class EpochImages(Dataset[Sample]):
    """The images of one epoch, augmented; without an augmentation, preprocessed for inference."""

    images: LabelledImages[ImageFile]
    preprocessing: Preprocessing
    augmentation: Augmentation | None = None
    seed: int = 0
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.images.files)

    def __getitem__(self, position: int) -> Sample:
        label, file = self.images.labels[position], self.images.files[position]
        try:
            source = image_content(file)
            if self.augmentation is None:
                return Sample(load_image(source, self.preprocessing), label, position)
            generator = np.random.default_rng([self.seed, self.epoch, position])
            mirrored = self.augmentation.flip and generator.random() < 0.5
            pixels = augment(source, self.preprocessing, self.augmentation, generator)
            return Sample(pixels, label, position, mirrored)
        except ImageError as error:
            return Sample(None, label, position, error=reason_of(error, file))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """The order of the images in an epoch, and their division into batches and processes."""

    batch_size: int
    """Images per step, summed over all processes."""
    shuffle: bool
    """True for an order that depends on seed and epoch; the last steps are then similar in size."""
    least: int = 1
    """Smallest number of images that a step can use, summed over all processes."""
    start: int = 0
    """Number of finished steps to skip."""
    rank: int = 0
    processes: int = 1
    workers: int = 0
    """Processes that decode images for this process; 0: it decodes them itself."""

    def batches(self, images: EpochImages) -> list[list[int]]:
        """Return the positions of this process for each step."""
        count = len(images)
        order = np.arange(count)
        if self.shuffle:
            order = np.random.default_rng([images.seed, images.epoch]).permutation(count)
        steps = np.split(order, np.cumsum(self.step_sizes(count))[:-1])[self.start :]
        return [step[self.rank :: self.processes].tolist() for step in steps]

    def step_sizes(self, images: int) -> list[int]:
        """Return the number of images of each step of an epoch, summed over all processes.

        Training uses each image once. A rest of less than half a batch shares two steps with the
        last full batch, because a few images would get a step as large as that of a batch.
        """
        full, rest = divmod(images, self.batch_size)
        sizes = [self.batch_size] * full
        if not self.shuffle or not full or rest >= max(self.batch_size / 2, self.least):
            return [*sizes, rest] if rest else sizes
        if rest:
            last = sizes.pop() + rest
            sizes += [last - last // 2, last // 2] if last // 2 >= self.least else [last]
        return sizes


def load_batches(epochs: Sequence[EpochImages], plan: BatchPlan) -> Iterator[Batch]:
    """Start the workers and return the batches of all epochs; `plan.start` applies to the first.

    At the end of an epoch, the workers already decode the images of the next one.

    Raises:
        TrainingError: The workers cannot be started.
    """
    if not epochs:
        return iter(())
    loader: DataLoader[Sample] = DataLoader(
        ConcatDataset(epochs),
        batch_sampler=_positions(epochs, plan),
        collate_fn=_collate,
        num_workers=plan.workers,
        prefetch_factor=BATCHES_AHEAD if plan.workers else None,
        pin_memory=torch.cuda.is_available(),
        timeout=SECONDS_PER_CHECK if plan.workers else 0,
        worker_init_fn=outlive_first_signal,
    )
    try:
        with unchanged_child_handler():
            batches = iter(loader)
    except OSError as error:
        raise TrainingError(
            f"{plan.workers} processes that decode images cannot be started: {error.strerror}",
            "use fewer --workers, or raise the limit with ulimit -u",
        ) from error
    return _receive(batches, multiprocessing.active_children())


def _receive(batches: Iterator[Batch], workers: Iterable[BaseProcess]) -> Iterator[Batch]:
    """Yield all batches, while the workers live; each may take up to `SECONDS_PER_BATCH`."""
    workers = {*workers, *multiprocessing.active_children()}  # those of later loaders, too
    while True:
        deadline = time.monotonic() + SECONDS_PER_BATCH
        batch = None
        while batch is None:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                check_alive(workers)
                if "timed out" not in str(error) or time.monotonic() > deadline:
                    raise
        check_alive(workers)
        yield batch


def _read_images(folder: Path) -> LabelledImages[ImageFile]:
    return read_shards(folder) if find_shards(folder) else read_image_folder(folder)


def _positions(epochs: Sequence[EpochImages], plan: BatchPlan) -> Iterator[list[int]]:
    """Yield batches of indices in the concatenated epochs; each order is drawn when needed."""
    first = 0
    for images in epochs:
        for positions in plan.batches(images):
            yield [first + position for position in positions]
        first += len(images)
        plan = replace(plan, start=0)


def _collate(samples: list[Sample]) -> Batch:
    good = [sample for sample in samples if sample.pixels is not None]
    images = [torch.from_numpy(sample.pixels) for sample in good]
    tensors = (
        torch.stack(images) if images else torch.empty((0, 0, 0, 3), dtype=torch.uint8),
        torch.tensor([sample.label for sample in good], dtype=torch.int64),
        torch.tensor([sample.mirrored for sample in good], dtype=torch.bool),
    )
    if get_worker_info() is not None:
        # PyTorch would do this later, in a thread whose errors nobody receives.
        for tensor in tensors:
            tensor.share_memory_()  # type: ignore[no-untyped-call]
    return Batch(
        *tensors,
        positions=tuple(sample.position for sample in good),
        unreadable={sample.position: sample.error for sample in samples if sample.pixels is None},
    )
