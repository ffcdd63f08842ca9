"""Source of an export: weights, labels, pre-processing, calibration images and golden images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from resdeploy.errors import CheckpointError, ExportError, ImageError
from resdeploy.images.class_folders import split_folder
from resdeploy.images.decode import read_rgb
from resdeploy.images.folder import find_images
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.train.config import DIGITS
from resdeploy.train.data.synthetic_digits import digits_folder
from resdeploy.train.model.checkpoint import Checkpoint, load_checkpoint
from resdeploy.train.run.folder import LATEST

logger = logging.getLogger(__name__)

DEFAULT_IMAGE_SIZE = 224  # in pixels
CHECKED_IMAGES = 8  # number of images whose size is compared with an assumed input size
MAX_LABELS_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePools:
    """Image files that an export may use; both fields may be empty."""

    calibration: tuple[Path, ...] = ()
    golden: tuple[Path, ...] = ()
    """Candidates for golden images; the same as `calibration` if there is no validation folder."""
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """Number of other pictures in the folder for calibration, by ending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Checkpoint with its labels, its pre-processing and its images."""

    checkpoint: Checkpoint
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    pools: ImagePools

    @property
    def name(self) -> str:
        """Name of the run's folder, or of the file without its suffix."""
        path = self.checkpoint.path.resolve()
        return path.name if path.is_dir() else path.stem

    def classes_of(self, paths: Sequence[Path]) -> list[int] | None:
        """Return the class of each image by the name of its folder, or None if one has no class."""
        class_of = {label: index for index, label in enumerate(self.labels)}
        classes = [class_of.get(path.parent.name) for path in paths]
        known = [index for index in classes if index is not None]
        return known if len(known) == len(paths) else None


def read_source(
    path: Path,
    *,
    image_size: int | None = None,
    labels: Path | None = None,
    calibration_data: Path | None = None,
) -> Source:
    """Load a checkpoint, and choose defaults for everything that it does not contain.

    Args:
        path: A run folder, a .safetensors file or a .pth file.
        image_size: Side of the input in pixels; by default, that of the run or, if unknown, 224.
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
        preprocessing = Preprocessing.standard(image_size or DEFAULT_IMAGE_SIZE)
    return Source(
        checkpoint=checkpoint,
        labels=_labels(checkpoint, labels),
        preprocessing=preprocessing,
        pools=pools,
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
        named = checkpoint.labels or [f"class {index}" for index in range(classes)]
        return tuple(" ".join(label.split()) for label in named)  # labels.txt has one per line
    try:
        if path.stat().st_size > MAX_LABELS_BYTES:
            raise ExportError(
                f"{path} has more than {MAX_LABELS_BYTES} bytes, too many for a list of labels",
                "name a text file with one class name per line",
            )
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(
            f"{path} cannot be read as text: {error}",
            "name a UTF-8 text file with one class name per line",
        ) from error
    labels = tuple(line.strip() for line in lines if line.strip())
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
    found = find_images(split_folder(root, "train"))
    golden = find_images(root / "val").files if (root / "val").is_dir() else found.files
    return ImagePools(calibration=found.files, golden=golden, passed_over=found.passed_over)
