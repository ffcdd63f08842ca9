"""Source of an export: weights, labels, pre-processing, calibration images and golden images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from os.path import getmtime
from pathlib import Path

from resdeploy.errors import CheckpointError, DataError, ExportError, ImageError
from resdeploy.export.source.graph_network import load_graph_network
from resdeploy.export.source.module import program_network
from resdeploy.export.source.network import CheckpointNetwork, Network
from resdeploy.export.source_preprocessing import choose_source_preprocessing
from resdeploy.file_locks import is_locked
from resdeploy.images.class_folders import (
    HeldOut,
    divide_again,
    label_images,
    match_labels,
    read_labels,
    split_folder,
)
from resdeploy.images.class_mapping import default_labels
from resdeploy.images.decode import read_rgb
from resdeploy.images.folder import find_images
from resdeploy.images.preprocessing import ImageSize, Preprocessing
from resdeploy.images.preprocessing_choice import ASSUMED, REPORTED, ChosenPreprocessing
from resdeploy.images.preprocessing_settings import NOTHING_STATED, PreprocessingSettings
from resdeploy.progress import Progress, silent
from resdeploy.result_files.provenance import shown_path
from resdeploy.train.checkpoint.contents import Weights
from resdeploy.train.checkpoint.load import Checkpoint, load_checkpoint
from resdeploy.train.checkpoint.run import MODEL_JSON, RunDocument, recorded_run, ways_to_go_on
from resdeploy.train.checkpoint.stated import first_difference, repeated_labels
from resdeploy.train.config import DIGITS
from resdeploy.train.data.shards import find_shards
from resdeploy.train.data.synthetic_digits import digits_folder
from resdeploy.train.run.folder import LATEST, STATE_FILE, unfinished_runs

logger = logging.getLogger(__name__)

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
    """Network with its labels, its pre-processing and its images."""

    network: Network
    labels: tuple[str, ...]
    choice: ChosenPreprocessing
    pools: ImagePools
    classes: Mapping[Path, int] = field(default_factory=dict)
    """Class of each image in a class folder, as far as known."""
    classes_are_guessed: bool = False
    """True if the order of any class folders is a guess."""
    run: RunDocument | None = None
    """Description of the run that the checkpoint is of."""
    is_own: bool = False
    """True for the images of a run with the pre-processing of its training."""

    @property
    def preprocessing(self) -> Preprocessing:
        """Settings that convert a picture to the network's input."""
        return self.choice.preprocessing

    @property
    def stated_preprocessing(self) -> Preprocessing | None:
        """The settings, if any of them is stated; None if all are assumed."""
        return None if self.choice.assumed == REPORTED else self.choice.preprocessing

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint of a ResNet.

        Raises:
            CheckpointError: The network comes from another kind of file.
        """
        if isinstance(self.network, CheckpointNetwork):
            return self.network.checkpoint
        raise CheckpointError(
            f"{self.network.path} is a graph without trainable weights",
            "give weights of PyTorch: a .pth, .ckpt, .bin or .safetensors file",
        )

    @property
    def name(self) -> str:
        """Name of the run's folder, or of the file without its suffix."""
        path = self.network.path.resolve()
        return path.name if path.is_dir() else path.stem

    @property
    def described(self) -> str:
        """Return the path of the checkpoint, for a run with its data and the day of its end."""
        shown = shown_path(self.network.path)
        if self.run is None:
            return shown
        day = str((self.run.provenance or {}).get("date", "earlier"))[:10]
        return f"{shown} ({Path(self.run.data).name}, trained {day})"

    @property
    def held_out(self) -> HeldOut | None:
        """Return the record of the images that the training held out, if there is one."""
        return self.run.held_out if self.run else None

    @property
    def validation_data(self) -> Path | None:
        """Return the folder of the run's data, which has validation images, if it is there."""
        if self.run is None or not self.pools.golden or not Path(self.run.data).is_dir():
            return None
        data = Path(self.run.data)
        shown = Path(shown_path(data))
        return shown if shown.resolve() == data.resolve() else data

    def classes_of(self, paths: Sequence[Path]) -> list[int] | None:
        """Return the class of each image, or None if that of any is not known."""
        classes = [self.classes.get(path) for path in paths]
        known = [position for position in classes if position is not None]
        return known if len(known) == len(paths) else None


def read_source(
    origin: Path | Checkpoint | Network,
    *,
    image_size: ImageSize | None = None,
    stated: PreprocessingSettings = NOTHING_STATED,
    preprocessing_file: Path | None = None,
    data: Path | None = None,
    labels: Path | None = None,
    calibration_data: Path | None = None,
    weights: Weights = Weights.AUTO,
    seed: int = 0,
    progress: Progress = silent,
) -> Source:
    """Load a network, and choose defaults for everything that its file does not contain.

    Args:
        origin: A run folder, a file or folder of weights or its content, an ONNX file, a
            program of `torch.export`, or a network.
        image_size: Size of the input in pixels.
        stated: Other settings of the pre-processing that options state; see
            `choose_source_preprocessing` for the rest.
        preprocessing_file: A file that states the pre-processing, or `auto`.
        data: With `auto`, a folder of labelled images.
        labels: A text file with one class name per line; by default, the names in the checkpoint,
            or `class 0`, `class 1` and so on if it has none.
        calibration_data: A folder of images; by default, the training images of the run.
        seed: Seed of the choice of images with `auto`.
        progress: Progress of the search with `auto`.
        weights: The weights to take if there is a moving average of them, too.

    Raises:
        CheckpointError: The checkpoint is missing or cannot be used, or its only logit has no
            labels.
        DataError: The folder of images is missing or has no images.
        ExportError: The labels cannot be read, or there are more or fewer labels than classes.
    """
    if origin == LATEST:
        _check_latest()
    if isinstance(origin, Path):
        # Resolve the link `runs/latest`, so that the bundle gets the name of the run.
        network = load_network(origin.resolve() if origin.is_symlink() else origin, weights)
    else:
        network = CheckpointNetwork(origin) if isinstance(origin, Checkpoint) else origin
    run = recorded_run(network.path)
    known = run.held_out if run else None
    data_of_run = network.checkpoint.data if isinstance(network, CheckpointNetwork) else None
    pools = _find_images(data_of_run, calibration_data, known)
    network, names = _name_classes(network, labels)
    for note in network.notes:
        logger.warning("%s: %s", network.path, note)
    choice = choose_source_preprocessing(
        network,
        replace(stated, image_size=image_size),
        preprocessing_file,
        names,
        data,
        seed=seed,
        progress=progress,
    )
    if choice.origins["image_size"] == ASSUMED:
        _check_default_size(network.path, choice.preprocessing, pools)
    classes, classes_are_guessed = _find_classes(pools, names, str(network.path))
    return Source(
        network=network,
        labels=names,
        choice=choice,
        pools=pools,
        classes=classes,
        classes_are_guessed=classes_are_guessed,
        run=run,
        is_own=calibration_data is None and {*choice.origins.values()} == {"the run"},
    )


def _check_latest() -> None:
    """Refuse an export without a finished run; log a warning if a newer run has not finished."""
    newest = next(iter(unfinished_runs()), None)
    is_training = newest is not None and is_locked(newest.resolve())
    remedy = ways_to_go_on(newest) if newest else "run resdeploy train first"
    state = f"; {newest} is {'being trained' if is_training else 'unfinished'}" if newest else ""
    if is_training:
        remedy = f"wait until it ends; or stop it with Ctrl-C, and then, {remedy}"
    if not LATEST.exists():
        raise CheckpointError(
            f"there is no finished run here: {LATEST} does not exist{state}",
            f"{remedy}; or name a checkpoint: resdeploy export SOURCE",
        )
    finished = LATEST / MODEL_JSON  # `load_checkpoint` refuses a run without it
    if newest and finished.exists() and getmtime(newest / STATE_FILE) > getmtime(finished):
        logger.warning("%s is newer, but its training has not finished; %s", newest, remedy)


def _check_default_size(path: Path, preprocessing: Preprocessing, pools: ImagePools) -> None:
    """Log a warning if the images are at most half as large as the assumed input size."""
    assumed, sides = max(preprocessing.size), []
    for image in pools.calibration[:CHECKED_IMAGES]:
        with suppress(ImageError):
            sides.append(max(read_rgb(image).size))
    if sides and 2 * max(sides) <= assumed:
        logger.warning(
            "%s does not contain the image size of the training; using %d pixels, to which these "
            "images of %d are enlarged; if the training had another size, state it with "
            "--image-size",
            path, assumed, max(sides),
        )  # fmt: skip


def load_network(path: Path, weights: Weights) -> Network:
    """Read the network in a file or folder, whose kind its ending tells.

    Raises:
        CheckpointError: The file is missing or damaged, or holds another kind of network.
        ExportError: The graph in an ONNX file cannot be converted.
    """
    if path.suffix.lower() == ".onnx" and path.exists():
        return load_graph_network(path)
    if path.suffix.lower() == ".pt2" and path.exists():
        return program_network(path)
    return CheckpointNetwork(load_checkpoint(path, weights))


def _name_classes(network: Network, path: Path | None) -> tuple[Network, tuple[str, ...]]:
    """Return the network with the labels of its classes; two for one logit."""
    stated, classes = network.labels, network.classes
    one_logit = network.checkpoint if isinstance(network, CheckpointNetwork) else None
    if path is None:
        if classes == 1 and one_logit is not None and one_logit.preprocessing is None:
            raise CheckpointError(
                f"{network.path} has one logit and no labels; one logit needs two labels",
                "name the negative and the positive class, one per line, with --labels FILE",
            )
        return network, stated or default_labels(classes)
    labels = tuple(filter(None, read_labels(path, ExportError)))
    if classes == 1 and len(labels) == 2 and one_logit is not None:
        return CheckpointNetwork(one_logit.with_two_classes()), labels
    if len(labels) != classes:
        raise ExportError(
            f"{path} has {len(labels)} labels, but the network has {classes} classes",
            "write one class name per line, in the order of the classes",
        )
    if repeated := repeated_labels(labels, path):
        logger.warning(repeated)
    if stated and (difference := first_difference(stated, labels)):
        logger.warning("the labels in %s and in %s differ: %s", network.path, path, difference)
    return network, labels


def _find_images(
    data: str | None, calibration_data: Path | None, known: HeldOut | None
) -> ImagePools:
    """Return the images in `train/` for calibration, and those in `val/` as golden candidates.

    Without `train/`, all images calibrate. Without `val/`, those that the training held out are
    candidates, otherwise the calibration images.
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
    if known is not None and val == root:
        with suppress(DataError):  # an export needs no labels
            if parts := divide_again(label_images(train, found.files), root, known):
                return ImagePools(
                    calibration=parts[0].files, golden=parts[1].files, folders=(train,),
                    passed_over=found.passed_over,
                )  # fmt: skip
    golden = find_images(val).files if val != root else found.files
    folders = (train, val) if val != root else (train,)
    return ImagePools(
        calibration=found.files, golden=golden, folders=folders, passed_over=found.passed_over
    )


def _find_classes(
    pools: ImagePools, labels: Sequence[str], owner: str
) -> tuple[dict[Path, int], bool]:
    """Return the class of each image, and whether it is a guess for any.

    Log why the class of images in sub-folders is not known.
    """
    classes: dict[Path, int] = {}
    guessed = False
    parts = [pools.calibration, pools.golden]
    if len(pools.folders) == 1:
        parts = [tuple(dict.fromkeys((*pools.calibration, *pools.golden)))]
    for folder, paths in zip(pools.folders, parts):
        has_split = any(folder in other.parents for other in pools.folders)
        if has_split or all(path.parent == folder for path in paths):
            continue  # an export needs no labels
        try:
            images = match_labels(label_images(folder, paths), labels, owner=owner)
        except DataError as error:
            logger.warning("the classes of the images in %s are not known: %s", folder, error)
            continue
        classes.update(zip(images.files, images.labels))
        guessed |= images.guessed
    return classes, guessed
