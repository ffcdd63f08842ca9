"""What a run starts from: a network, an optimiser, the weights of the classes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from resdeploy.errors import TrainingError
from resdeploy.images.folder import LabelledImages
from resdeploy.train.config import TrainingConfig
from resdeploy.train.model.architecture import Architecture, Shortcut
from resdeploy.train.model.checkpoint import Checkpoint, load_checkpoint
from resdeploy.train.model.resnet import ResNet


def initial_network(config: TrainingConfig, classes: int) -> ResNet:
    """A new network, or that of `config.init`; with `config.freeze` only its head can be trained.

    Raises:
        CheckpointError: the weights cannot be used.
        TrainingError: they are of another kind of network than asked for.
    """
    torch.manual_seed(config.seed)
    if config.init is None:
        return ResNet(Architecture(classes=classes, shortcut=config.shortcut or Shortcut.B))
    checkpoint = load_checkpoint(Path(config.init))
    if config.shortcut not in (None, checkpoint.architecture.shortcut):
        raise TrainingError(
            f"{config.init} is a {checkpoint.architecture.name}",
            "leave --shortcut out, or start without --init",
        )
    if config.qat and checkpoint.architecture.classes != classes:
        raise TrainingError(
            f"{config.init} knows {checkpoint.architecture.classes} classes and {config.data} "
            f"has {classes}",
            "fine-tune it without --qat first",
        )
    network = adopt(checkpoint, classes)
    if config.freeze:
        network.requires_grad_(False)
        network.fc.requires_grad_(True)
    return network


def adopt(checkpoint: Checkpoint, classes: int) -> ResNet:
    """A network that starts from `checkpoint`; for another number of classes, with a new head."""
    network = checkpoint.network().train()
    if checkpoint.architecture.classes != classes:
        network.fc = nn.Linear(network.fc.in_features, classes)
        blocks, shortcut = checkpoint.architecture.blocks, checkpoint.architecture.shortcut
        network.architecture = Architecture(classes=classes, blocks=blocks, shortcut=shortcut)
    return network


def make_optimizer(network: nn.Module, config: TrainingConfig) -> torch.optim.SGD:
    """SGD on what may be trained; biases, norms and scales are not drawn to zero.

    With `decay_all` they are, as in the paper.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {
            "params": [p for p in trained if p.ndim <= 1],
            "weight_decay": config.weight_decay if config.decay_all else 0.0,
        },
    ]
    return torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=True,  # one walk over the weights instead of four
    )


def balanced_weights(images: LabelledImages[object]) -> Tensor:
    """A weight for each class, float32 (K,), with which all classes together count alike."""
    counts = torch.bincount(torch.tensor(images.labels), minlength=len(images.classes))
    return len(images.labels) / (len(images.classes) * counts).float()
