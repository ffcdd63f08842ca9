"""What an export starts from: weights, labels, pre-processing, and images to prove it with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from resdeploy.errors import CheckpointError, ExportError, ImageError
from resdeploy.images.decode import read_rgb
from resdeploy.images.folder import list_images, split_folder
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.train.config import DIGITS
from resdeploy.train.data.digits import digits_folder
from resdeploy.train.model.checkpoint import Checkpoint, load_checkpoint
from resdeploy.train.run.folder import LATEST

logger = logging.getLogger(__name__)

DEFAULT_IMAGE_SIZE = 224
PICTURES_LOOKED_AT = 8
MAX_LABELS_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePools:
    """Image files that an export may look at; either may be empty."""

    calibration: tuple[Path, ...] = ()
    golden: tuple[Path, ...] = ()
    """Best different from those of `calibration`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A checkpoint with nothing left open."""

    checkpoint: Checkpoint
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    pools: ImagePools

    @property
    def name(self) -> str:
        """That of the run's folder, or of the file without its ending."""
        path = self.checkpoint.path.resolve()
        return path.name if path.is_dir() else path.stem

    def classes_of(self, paths: Sequence[Path]) -> list[int] | None:
        """The class of each image, after the folder that it lies in; None if those say nothing."""
        index = {label: position for position, label in enumerate(self.labels)}
        classes = [index.get(path.parent.name) for path in paths]
        known = [label for label in classes if label is not None]
        return known if len(known) == len(paths) else None


def read_source(
    path: Path,
    *,
    image_size: int | None = None,
    labels: Path | None = None,
    calibration_data: Path | None = None,
) -> Source:
    """Load a checkpoint and settle what it does not say.

    Args:
        path: A run's folder, a .safetensors or a .pth file.
        image_size: Side of the input in pixels; None for the run's own, or 224.
        labels: A text file with one class name a line; None for the checkpoint's, or numbers.
        calibration_data: A folder of images; None for those that the run was trained on.

    Raises:
        CheckpointError: the weights cannot be used.
        DataError: the folder of images cannot be used.
        ExportError: the labels do not fit.
    """
    if path == LATEST and not path.exists():
        raise CheckpointError(
            f"there is no finished run here ({LATEST} does not exist)",
            "run resdeploy train first, or name a checkpoint: resdeploy export SOURCE",
        )
    # `runs/latest` is resolved, so that the bundle is named after the run.
    checkpoint = load_checkpoint(path.resolve() if path.is_symlink() else path)
    pools = _pools(checkpoint.data, calibration_data)
    preprocessing = checkpoint.preprocessing
    if preprocessing is None and image_size is None:
        _doubt_size(checkpoint.path, pools)
    if preprocessing is None or image_size not in (None, preprocessing.image_size):
        preprocessing = Preprocessing.standard(image_size or DEFAULT_IMAGE_SIZE)
    return Source(
        checkpoint=checkpoint,
        labels=_labels(checkpoint, labels),
        preprocessing=preprocessing,
        pools=pools,
    )


def _doubt_size(path: Path, pools: ImagePools) -> None:
    """Say so where the size that is assumed does not fit the pictures."""
    sides = []
    for picture in pools.calibration[:PICTURES_LOOKED_AT]:
        with suppress(ImageError):
            sides.append(max(read_rgb(picture).size))
    if sides and 2 * max(sides) <= DEFAULT_IMAGE_SIZE:
        logger.warning(
            "%s does not say for which image size it was trained, and %d is assumed, although "
            "the pictures have %d pixels: name the right one with --image-size",
            path, DEFAULT_IMAGE_SIZE, max(sides),
        )  # fmt: skip


def _labels(checkpoint: Checkpoint, path: Path | None) -> tuple[str, ...]:
    classes = checkpoint.architecture.classes
    if path is None:
        named = checkpoint.labels or [f"class {index}" for index in range(classes)]
        return tuple(" ".join(label.split()) for label in named)  # labels.txt has one a line
    try:
        if path.stat().st_size > MAX_LABELS_BYTES:
            raise ExportError(f"{path} is too large for a list of labels", "is it the right file?")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(
            f"{path} cannot be read as text: {error}", "write one class name a line, in UTF-8"
        ) from error
    labels = tuple(line.strip() for line in lines if line.strip())
    if len(labels) != classes:
        raise ExportError(
            f"{path} has {len(labels)} labels and the network {classes} classes",
            "write one class name a line, in the order of the classes",
        )
    return labels


def _pools(data: str | None, calibration_data: Path | None) -> ImagePools:
    """Training images calibrate, validation images are golden, where there are such folders."""
    if calibration_data is not None:
        root = calibration_data
    elif data is not None:
        root = digits_folder() if data == DIGITS else Path(data)
        if not root.is_dir():
            return ImagePools()  # the data moved away; only INT8 will miss it
    else:
        return ImagePools()
    calibration = list_images(split_folder(root, "train"))
    golden = list_images(root / "val") if (root / "val").is_dir() else calibration
    return ImagePools(calibration=calibration, golden=golden)
