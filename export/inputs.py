"""Source of an export: weights, labels, pre-processing, calibration images and golden images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from resdeploy.errors import CheckpointError, DataError, ExportError, ImageError
from resdeploy.images.class_folders import label_images, match_labels, read_labels, split_folder
from resdeploy.images.class_mapping import default_labels
from resdeploy.images.decode import read_rgb
from resdeploy.images.folder import find_images
from resdeploy.images.preprocessing import ImageSize, Preprocessing
from resdeploy.train.checkpoint.load import Checkpoint, load_checkpoint
from resdeploy.train.config import DIGITS
from resdeploy.train.data.shards import find_shards
from resdeploy.train.data.synthetic_digits import digits_folder
from resdeploy.train.run.folder import LATEST

logger = logging.getLogger(__name__)

DEFAULT_IMAGE_SIZE = 224  # in pixels
CHECKED_IMAGES = 8  # number of images whose size is compared with an assumed input size


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePools:
    """Image files that an export may use; both fields may be empty."""

    calibration: tuple[Path, ...] = ()
    golden: tuple[Path, ...] = ()
    """Candidates for golden images; the same as `calibration` if there is no validation folder."""
    folders: tuple[Path, ...] = ()
    """Folders of `calibration` and `golden`, which may hold class folders."""
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """Number of other pictures in the folder for calibration, by ending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Checkpoint with its labels, its pre-processing and its images."""

    checkpoint: Checkpoint
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    pools: ImagePools
    classes: Mapping[Path, int] = field(default_factory=dict)
    """Class of each image in a class folder, as far as known."""

    @property
    def name(self) -> str:
        """Name of the run's folder, or of the file without its suffix."""
        path = self.checkpoint.path.resolve()
        return path.name if path.is_dir() else path.stem

    def classes_of(self, paths: Sequence[Path]) -> list[int] | None:
        """Return the class of each image, or None if that of any is not known."""
        classes = [self.classes.get(path) for path in paths]
        known = [position for position in classes if position is not None]
        return known if len(known) == len(paths) else None


def read_source(
    path: Path,
    *,
    image_size: ImageSize | None = None,
    labels: Path | None = None,
    calibration_data: Path | None = None,
) -> Source:
    """Load a checkpoint, and choose defaults for everything that it does not contain.

    Args:
        path: A run folder, a .safetensors file or a .pth file.
        image_size: Size of the input in pixels; by default, that of the run or, if unknown, 224.
        labels: A text file with one class name per line; by default, the names in the checkpoint,
            or `class 0`, `class 1` and so on if it has none.
        calibration_data: A folder of images; by default, the training images of the run.

    Raises:
        CheckpointError: The checkpoint is missing or cannot be used.
        DataError: The folder of images is missing or has no images.
        ExportError: The labels cannot be read, or there are more or fewer labels than classes.
    """
    if path == LATEST and not path.exists():
        raise CheckpointError(
            f"there is no finished run here: {LATEST} does not exist",
            "run resdeploy train first, or name a checkpoint: resdeploy export SOURCE",
        )
    # Resolve the link `runs/latest`, so that the bundle gets the name of the run.
    checkpoint = load_checkpoint(path.resolve() if path.is_symlink() else path)
    pools = _find_images(checkpoint.data, calibration_data)
    preprocessing = checkpoint.preprocessing
    if preprocessing is None and image_size is None:
        _check_default_size(checkpoint.path, pools)
    if preprocessing is None or image_size not in (None, preprocessing.image_size):
        # A published checkpoint is used with pictures that are decoded whole.
        gap = None if preprocessing is None else preprocessing.reducing_gap
        preprocessing = Preprocessing.standard(image_size or DEFAULT_IMAGE_SIZE, reducing_gap=gap)
    names = _labels(checkpoint, labels)
    return Source(
        checkpoint=checkpoint,
        labels=names,
        preprocessing=preprocessing,
        pools=pools,
        classes=_find_classes(pools, names, str(path)),
    )


def _check_default_size(path: Path, pools: ImagePools) -> None:
    """Log a warning if the images are at most half as large as the default input size."""
    sides = []
    for image in pools.calibration[:CHECKED_IMAGES]:
        with suppress(ImageError):
            sides.append(max(read_rgb(image).size))
    if sides and 2 * max(sides) <= DEFAULT_IMAGE_SIZE:
        logger.warning(
            "%s does not contain the image size of the training; using %d pixels, but the images "
            "have only %d: set the right size with --image-size",
            path, DEFAULT_IMAGE_SIZE, max(sides),
        )  # fmt: skip


def _labels(checkpoint: Checkpoint, path: Path | None) -> tuple[str, ...]:
    classes = checkpoint.architecture.classes
    if path is None:
        return checkpoint.labels or default_labels(classes)
    labels = tuple(filter(None, read_labels(path, ExportError)))
    if len(labels) != classes:
        raise ExportError(
            f"{path} has {len(labels)} labels, but the network has {classes} classes",
            "write one class name per line, in the order of the classes",
        )
    return labels


def _find_images(data: str | None, calibration_data: Path | None) -> ImagePools:
    """Return the images in `train/` for calibration, and those in `val/` as golden candidates.

    Without `train/`, all images calibrate. Without `val/`, the calibration images are candidates.
    """
    if calibration_data is not None:
        root = calibration_data
    elif data is not None:
        root = digits_folder() if data == DIGITS else Path(data)
        if not root.is_dir():
            return ImagePools()  # the data was moved; only INT8 needs it
    else:
        return ImagePools()
    train, val = (split_folder(root, split) for split in ("train", "val"))
    if calibration_data is None and find_shards(train):
        logger.warning(
            "the images of the run are in tar files, which an export does not read; name a folder "
            "of images with --calibration-data"
        )
        return ImagePools()
    found = find_images(train)
    golden = find_images(val).files if val != root else found.files
    folders = (train, val) if val != root else (train,)
    return ImagePools(
        calibration=found.files, golden=golden, folders=folders, passed_over=found.passed_over
    )


def _find_classes(pools: ImagePools, labels: Sequence[str], owner: str) -> dict[Path, int]:
    """Return the class of each image; log why that of images in sub-folders is not known."""
    classes: dict[Path, int] = {}
    for folder, paths in zip(pools.folders, (pools.calibration, pools.golden)):
        has_split = any(folder in other.parents for other in pools.folders)
        if has_split or all(path.parent == folder for path in paths):
            continue  # an export needs no labels
        try:
            images = match_labels(label_images(folder, paths), labels, owner=owner)
        except DataError as error:
            logger.warning("the classes of the images in %s are not known: %s", folder, error)
            continue
        classes.update(zip(images.files, images.labels))
    return classes
