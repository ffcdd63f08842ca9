"""The initial network, optimiser and class weights of a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from resdeploy.errors import DataError, TrainingError
from resdeploy.images.class_folders import LabelledImages
from resdeploy.images.class_mapping import default_labels, log_once, map_classes
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.images.preprocessing_choice import StatedSettings
from resdeploy.images.preprocessing_files import read_preprocessing_file
from resdeploy.images.preprocessing_settings import NOTHING_STATED, PreprocessingSettings
from resdeploy.images.preprocessing_text import setting_texts
from resdeploy.train.checkpoint.load import Checkpoint, load_checkpoint
from resdeploy.train.checkpoint.sources import stated_sources
from resdeploy.train.config import TrainingConfig
from resdeploy.train.model.architecture import ARCHITECTURES, Architecture, Shortcut, Stem
from resdeploy.train.model.resnet import ResNet

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class InitialNetwork:
    """A network before training, and the meaning of its outputs."""

    network: ResNet
    labels: tuple[str, ...]
    """Names of the outputs, in their order."""
    outputs: tuple[int, ...]
    """Output of each class of the data."""


def initial_network(
    config: TrainingConfig, classes: Sequence[str], initial: Checkpoint | None = None
) -> InitialNetwork:
    """Return a new network or that of `config.init`, frozen except its head with `config.freeze`.

    The outputs of `config.init` keep their order and their names, so a network that replaces it
    gives the same class the same number. The head is new if the classes of the data are others.

    Raises:
        CheckpointError: The weights cannot be used.
        TrainingError: The network of `config.init` does not fit the settings or the classes.
    """
    torch.manual_seed(config.seed)
    labels, outputs = tuple(classes), tuple(range(len(classes)))
    if config.init is None:
        architecture = replace(
            ARCHITECTURES[config.arch or "resnet34"],
            classes=len(classes),
            stem=Stem(config.stem or Stem.IMAGENET),
            shortcut=config.shortcut or Shortcut.B,
        )
        return InitialNetwork(ResNet(architecture), labels, outputs)
    checkpoint = initial or load_checkpoint(Path(config.init))
    for note in checkpoint.notes:
        log_once(f"{config.init}: {note}")
    if config.shortcut not in (None, checkpoint.architecture.shortcut):
        raise TrainingError(
            f"{config.init} is a {checkpoint.architecture.name} with shortcut option "
            f"{checkpoint.architecture.shortcut.value}, which --shortcut cannot change",
            "remove --shortcut or --init",
        )
    network = checkpoint.network().train()
    try:
        labels, outputs = match_outputs(config, checkpoint, classes)
    except DataError as error:
        if config.qat:
            raise TrainingError(
                f"--qat cannot change the classes of {config.init}: {error}",
                "fine-tune the network without --qat first",
            ) from error
        logger.info("the classifier of %s is replaced by a new one: %s", config.init, error)
        network = with_new_head(network, len(classes))
    return InitialNetwork(_freeze(network, config), labels, outputs)


def prepare(
    config: TrainingConfig, stated: PreprocessingSettings = NOTHING_STATED, file: Path | None = None
) -> tuple[TrainingConfig, Checkpoint | None]:
    """Return the settings with their pre-processing, and the checkpoint of `config.init`.

    Each setting of the pre-processing comes from the first of: `stated` options, `file`, and the
    checkpoint. The standard pre-processing has the others. A complete one is not changed.

    Raises:
        CheckpointError: The weights cannot be used.
        DataError: A file is damaged or cannot be followed, or the pre-processing is not possible.
    """
    initial = None if config.init is None else load_checkpoint(Path(config.init))
    own = [] if initial is None else stated_sources(initial)
    is_chosen = file is not None or replace(stated, image_size=None) != NOTHING_STATED
    if config.preprocessing is not None or not (own or is_chosen):
        return config, initial
    sources = [StatedSettings(settings=stated, place="an option", is_option=True)]
    if file is not None:
        sources.append(StatedSettings(settings=read_preprocessing_file(file), place=file.name))
    found = config.with_preprocessing(sources, own)
    if not is_chosen and found.preprocessing == Preprocessing.standard(config.image_size):
        return config, initial
    if not is_chosen and found.preprocessing is not None:
        words = ", ".join(setting_texts(found.preprocessing).values())
        log_once(f"the pre-processing is that of {config.init}: {words}")
    return found, initial


def resumed_network(config: TrainingConfig, architecture: Architecture) -> ResNet:
    """Return a network for the weights of a saved state, frozen as that of `initial_network`."""
    return _freeze(ResNet(architecture), config)


def match_outputs(
    config: TrainingConfig, checkpoint: Checkpoint, classes: Sequence[str]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the names of the checkpoint's outputs, and the output of each of the `classes`.

    Raises:
        DataError: The checkpoint has other classes.
    """
    count = checkpoint.architecture.classes
    if count != len(classes):
        raise DataError(f"it has {count} classes, but {config.data} has {len(classes)}")
    if checkpoint.labels is not None:
        owner = str(config.init)
        outputs = map_classes(classes, checkpoint.labels, guess=False, owner=owner)
        if outputs != sorted(outputs):
            log_once(f"the classes keep their order in {owner}, not that of the folders")
        return checkpoint.labels, tuple(outputs)
    # A file without names of classes can only be taken by number, or by the order of the folders.
    outputs = map_classes(classes, default_labels(count), owner=str(config.init))
    return tuple(classes[outputs.index(output)] for output in range(count)), tuple(outputs)


def with_new_head(network: ResNet, classes: int) -> ResNet:
    """Give `network` an untrained last layer of as many outputs, and return it."""
    last = nn.Linear(network.last_layer.in_features, classes)
    if isinstance(network.fc, nn.Sequential):
        network.fc[-1] = last
    else:
        network.fc = last
    network.architecture = replace(network.architecture, classes=classes)
    return network


def make_optimizer(network: nn.Module, config: TrainingConfig) -> torch.optim.SGD:
    """Return SGD for the parameters that are not frozen.

    Biases, batch norm and scales have no weight decay unless `config.decay_all` is set.
    """
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    weights = [parameter for parameter in trainable if parameter.ndim > 1]
    others = [parameter for parameter in trainable if parameter.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": config.weight_decay if config.decay_all else 0.0},
    ]
    # The fused optimiser reads the weights once per step instead of four times.
    return torch.optim.SGD(groups, config.lr, config.momentum, nesterov=config.nesterov, fused=True)


def balanced_weights(images: LabelledImages[object]) -> Tensor:
    """Return class weights, float32 (K,), with which every class has the same total weight."""
    counts = torch.bincount(torch.tensor(images.labels), minlength=len(images.classes))
    return len(images.labels) / (len(images.classes) * counts).float()


def _freeze(network: ResNet, config: TrainingConfig) -> ResNet:
    if config.freeze:
        network.requires_grad_(False)
        network.fc.requires_grad_(True)
    return network
