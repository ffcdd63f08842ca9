"""State dicts of small networks, under the names that other libraries give."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from resdeploy.train.checkpoint.naming import SCHEMES, NamingScheme
from resdeploy.train.model.architecture import Architecture, BlockType, Stem
from resdeploy.train.model.resnet import ResNet
from tests.samples import randomise_batch_norms

State = dict[str, Tensor]
SMALL = Architecture(classes=3, blocks=(2, 1, 1), width=8)
SMALL_BOTTLENECK = replace(SMALL, block=BlockType.BOTTLENECK)
CIFAR = replace(SMALL, stem=Stem.CIFAR)
BY_NAME = {scheme.name: scheme for scheme in SCHEMES}


def make_state(architecture: Architecture = SMALL, seed: int = 0) -> State:
    torch.manual_seed(seed)
    return dict(randomise_batch_norms(ResNet(architecture), seed).state_dict())


def renamed(state: State, scheme: NamingScheme, head: str = "fc", prefix: str = "") -> State:
    """Return the same tensors under the names of a scheme, with the linear layer as `head`."""
    return {
        f"{head}.{name.removeprefix('fc.')}"
        if name.startswith("fc.")
        else prefix + scheme.key(name): tensor
        for name, tensor in state.items()
    }


def assert_equal_states(loaded: State, state: State) -> None:
    assert loaded.keys() == state.keys()
    for name, tensor in loaded.items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)
