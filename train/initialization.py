"""The initial network, optimiser and class weights of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from resdeploy.errors import TrainingError
from resdeploy.images.class_folders import LabelledImages
from resdeploy.train.config import TrainingConfig
from resdeploy.train.model.architecture import Architecture, Shortcut
from resdeploy.train.model.checkpoint import Checkpoint, load_checkpoint
from resdeploy.train.model.resnet import ResNet


def initial_network(config: TrainingConfig, classes: int) -> ResNet:
    """Return a new network or that of `config.init`, frozen except its head with `config.freeze`.

    Raises:
        CheckpointError: The weights cannot be used.
        TrainingError: The network of `config.init` does not fit the settings.
    """
    torch.manual_seed(config.seed)
    if config.init is None:
        return ResNet(Architecture(classes=classes, shortcut=config.shortcut or Shortcut.B))
    checkpoint = load_checkpoint(Path(config.init))
    if config.shortcut not in (None, checkpoint.architecture.shortcut):
        raise TrainingError(
            f"{config.init} is a {checkpoint.architecture.name} with shortcut option "
            f"{checkpoint.architecture.shortcut.value}, which --shortcut cannot change",
            "remove --shortcut or --init",
        )
    if config.qat and checkpoint.architecture.classes != classes:
        raise TrainingError(
            f"{config.init} has {checkpoint.architecture.classes} classes, but {config.data} has "
            f"{classes}",
            "fine-tune the network without --qat first",
        )
    return _freeze(network_from_checkpoint(checkpoint, classes), config)


def resumed_network(config: TrainingConfig, architecture: Architecture) -> ResNet:
    """Return a network for the weights of a saved state, frozen as that of `initial_network`."""
    return _freeze(ResNet(architecture), config)


def network_from_checkpoint(checkpoint: Checkpoint, classes: int) -> ResNet:
    """Return the network of `checkpoint`, with a new head if its number of classes differs."""
    network = checkpoint.network().train()
    if checkpoint.architecture.classes != classes:
        network.fc = nn.Linear(network.fc.in_features, classes)
        network.architecture = replace(checkpoint.architecture, classes=classes)
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
