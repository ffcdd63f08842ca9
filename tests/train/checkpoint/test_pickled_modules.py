"""Tests of reading whole networks from pickles and TorchScript archives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resdeploy.train.checkpoint.pickled_modules import (
    contradictions,
    module_settings,
    module_tensors,
)
from resdeploy.train.checkpoint.torch_file import read_torch_file
from resdeploy.train.model.resnet import ResNet
from tests.samples import TINY, make_classifier


class Learner:
    """An object that holds a network as fastai's Learner does."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model


class WithBuffers(nn.Module):
    """A module with all kinds of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("dropped", torch.ones(3), persistent=False)
        self.register_buffer("empty", None)
        self.tied = self.linear = nn.Linear(2, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x


def save_whole(module: Any, path: Path) -> None:
    torch.save(module, path)


def save_legacy(module: Any, path: Path) -> None:
    torch.save(module, path, _use_new_zipfile_serialization=False)


def save_traced(module: Any, path: Path) -> None:
    trace: Any = torch.jit.trace  # it has no types
    trace(module, torch.zeros(1, 3, 32, 32)).save(path)


WAYS: list[Callable[[nn.Module, Path], None]] = [
    save_whole,
    save_legacy,
    save_traced,
    lambda module, path: save_whole(nn.DataParallel(module), path),
    lambda module, path: save_whole(Learner(module), path),
    lambda module, path: save_whole(module.half(), path),
]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("save", WAYS)
def test_a_whole_network_gives_its_state_dict(
    tmp_path: Path, save: Callable[[nn.Module, Path], None]
) -> None:
    module = make_classifier().network
    save(module, tmp_path / "a.pth")
    tensors = module_tensors(read_torch_file(tmp_path / "a.pth"))
    expected = dict(module.state_dict())
    assert save is save_traced or list(tensors) == list(expected)  # TorchScript's order differs
    torch.testing.assert_close(tensors, expected, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_network_gives_its_state_dict(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    script: Any = torch.jit.script  # it has no types
    script(module).save(tmp_path / "a.pt")
    tensors = module_tensors(read_torch_file(tmp_path / "a.pt"))
    torch.testing.assert_close(tensors, dict(module.state_dict()), rtol=0, atol=0)


def test_buffers_and_shared_parameters_are_those_of_the_state_dict(tmp_path: Path) -> None:
    save_whole(WithBuffers(), tmp_path / "a.pth")
    tensors = module_tensors(read_torch_file(tmp_path / "a.pth"))
    assert list(tensors) == list(WithBuffers().state_dict())


def test_an_object_that_is_no_module_has_no_tensors(tmp_path: Path) -> None:
    save_whole(nn.functional.relu, tmp_path / "a.pth")
    assert module_tensors(read_torch_file(tmp_path / "a.pth")) == {}


def read_settings(module: nn.Module, folder: Path) -> dict[str, dict[str, object]]:
    save_whole(module, folder / "a.pth")
    return module_settings(read_torch_file(folder / "a.pth"))


def test_settings_are_those_of_the_modules(tmp_path: Path) -> None:
    settings = read_settings(nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1, groups=2)), tmp_path)["0"]
    assert settings["class"] == "torch.nn.modules.conv.Conv2d"
    assert {name: settings[name] for name in ("kernel_size", "stride", "padding", "groups")} == {
        "kernel_size": (3, 3), "stride": (2, 2), "padding": (1, 1), "groups": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda n: None, []),
        (lambda n: setattr(n, "avgpool", nn.AvgPool2d(7, stride=1)), []),
        (lambda n: setattr(n, "maxpool", nn.MaxPool2d((3, 3), (2, 2), (1, 1))), []),
        (lambda n: n.fc.register_module("drop", nn.Dropout()), []),
        (
            lambda n: setattr(n.layer3[0].bn1, "eps", 1e-3),
            ["eps of layer3.0.bn1 is 0.001 instead of 1e-05"],
        ),
        (
            lambda n: setattr(n.layer2[0].conv1, "stride", (1, 1)),
            ["stride of layer2.0.conv1 is (1, 1) instead of (2, 2)"],
        ),
        (
            lambda n: setattr(n, "maxpool", nn.MaxPool2d(3, 2, 0, ceil_mode=True)),
            [
                "padding of maxpool is 0 instead of 1",
                "ceil_mode of maxpool is True instead of False",
            ],
        ),
        (
            lambda n: setattr(n.conv1, "padding_mode", "reflect"),
            ["padding_mode of conv1 is 'reflect' instead of zeros"],
        ),
        (
            lambda n: setattr(n.layer1[0], "relu1", nn.LeakyReLU()),
            ["layer1.0.relu1 is of class LeakyReLU"],
        ),
        (
            lambda n: n.layer2[0].downsample.insert(0, nn.AvgPool2d(2)),
            ["layer2.0.downsample.0 is of class AvgPool2d"],
        ),
        (lambda n: n.register_module("softmax", nn.Softmax(1)), ["softmax is of class Softmax"]),
    ],
)
def test_names_what_a_pickled_network_computes_differently(
    tmp_path: Path, change: Callable[[Any], object], found: list[str]
) -> None:
    with torch.device("meta"):  # without weights, which this test does not need
        network, changed = ResNet(TINY), ResNet(TINY)
        change(changed)
    assert contradictions(read_settings(changed, tmp_path), network) == found
