"""Tests of the naming schemes, against the names that the libraries publish."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from resdeploy.errors import CheckpointError
from resdeploy.train.checkpoint.load import load_checkpoint
from resdeploy.train.checkpoint.naming import SCHEMES, name_tensors
from resdeploy.train.model.architecture import Architecture
from tests.train.checkpoint.states import (
    BY_NAME,
    CIFAR,
    SMALL,
    SMALL_BOTTLENECK,
    assert_equal_states,
    make_state,
    renamed,
)

# Names written out from the libraries' code, with torchvision's names of the same tensors.
PUBLISHED = {
    "torchvision": {"layer3.1.downsample.1.running_var": "layer3.1.downsample.1.running_var"},
    "pytorch-cifar": {
        "layer2.0.shortcut.0.weight": "layer2.0.downsample.0.weight",
        "layer4.1.bn2.bias": "layer4.1.bn2.bias",
    },
    "Hugging Face": {
        "embedder.embedder.convolution.weight": "conv1.weight",
        "embedder.embedder.normalization.running_mean": "bn1.running_mean",
        "encoder.stages.0.layers.1.layer.0.convolution.weight": "layer1.1.conv1.weight",
        "encoder.stages.3.layers.0.layer.2.normalization.bias": "layer4.0.bn3.bias",
        "encoder.stages.1.layers.0.shortcut.convolution.weight": "layer2.0.downsample.0.weight",
        "encoder.stages.1.layers.0.shortcut.normalization.weight": "layer2.0.downsample.1.weight",
    },
    "fastai": {
        "0.0.weight": "conv1.weight",
        "0.1.running_var": "bn1.running_var",
        "0.4.0.conv1.weight": "layer1.0.conv1.weight",
        "0.7.1.bn2.weight": "layer4.1.bn2.weight",
        "0.5.0.downsample.1.bias": "layer2.0.downsample.1.bias",
    },
    "children of torchvision's network": {
        "0.weight": "conv1.weight",
        "4.2.conv2.weight": "layer1.2.conv2.weight",
    },
    "pytorch-cifar100": {
        "conv1.0.weight": "conv1.weight",
        "conv1.1.running_mean": "bn1.running_mean",
        "conv2_x.0.residual_function.0.weight": "layer1.0.conv1.weight",
        "conv5_x.1.residual_function.4.bias": "layer4.1.bn2.bias",
        "conv3_x.0.residual_function.6.weight": "layer2.0.conv3.weight",
        "conv3_x.0.shortcut.1.weight": "layer2.0.downsample.1.weight",
    },
}


@pytest.mark.parametrize("name", [scheme.name for scheme in SCHEMES])
def test_published_names_are_translated_both_ways(name: str) -> None:
    scheme = BY_NAME[name]
    for key, expected in PUBLISHED[name].items():
        assert scheme.translate(key) == expected
        assert scheme.key(expected) == key


@pytest.mark.parametrize(
    ("name", "head", "prefix", "architecture"),
    [
        ("torchvision", "classifier", "backbone.", SMALL_BOTTLENECK),
        ("torchvision", "model.head.fc", "model.encoder.net.", SMALL),
        ("pytorch-cifar", "linear", "module.", CIFAR),
        ("pytorch-cifar", "fc.fc", "", SMALL_BOTTLENECK),
        ("Hugging Face", "classifier.1", "resnet.", SMALL),
        ("fastai", "1.2", "", SMALL),
        ("children of torchvision's network", "last_linear", "features.", SMALL),
        ("pytorch-cifar100", "fc", "net._orig_mod.module.", CIFAR),
    ],
)
def test_each_scheme_gives_the_same_tensors_behind_any_prefix(
    name: str, head: str, prefix: str, architecture: Architecture, tmp_path: Path
) -> None:
    state = make_state(architecture)
    torch.save(renamed(state, BY_NAME[name], head, prefix), tmp_path / "a.bin")
    loaded = load_checkpoint(tmp_path / "a.bin")
    assert (loaded.scheme, loaded.architecture) == (name, architecture)
    assert_equal_states(loaded.state, state)


def test_names_of_wrappers_are_removed_anywhere(tmp_path: Path) -> None:
    state = make_state()
    wrapped = {
        "_fsdp_wrapped_module." + key.replace(".0.", ".0._checkpoint_wrapped_module.", 1): tensor
        for key, tensor in state.items()
    }
    torch.save(wrapped, tmp_path / "a.pth")
    assert_equal_states(load_checkpoint(tmp_path / "a.pth").state, state)


def test_two_tensors_of_one_name_are_refused() -> None:
    state = make_state()
    with pytest.raises(ValueError, match=r"conv1\.weight and module\.conv1\.weight are two"):
        name_tensors({**state, "module.conv1.weight": state["conv1.weight"]}, "")


def test_the_refusal_names_the_nearest_scheme_and_three_keys(tmp_path: Path) -> None:
    keys = ["embedder.embedder.convolution.weight", "a.weight", "b.weight", "c.weight", "d.weight"]
    torch.save({key: torch.zeros(2) for key in keys}, tmp_path / "a.pth")
    with pytest.raises(
        CheckpointError,
        match=r"(?m)1 of its 5 .* Hugging Face.* not a\.weight, b\.weight, c\.weight$",
    ):
        load_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("spell", [str.upper, str.title, lambda name: name.replace(".", "/")])
def test_names_in_another_spelling_are_refused_with_the_remedy(
    tmp_path: Path, spell: Callable[[str], str]
) -> None:
    state = renamed(make_state(), BY_NAME["Hugging Face"], "classifier.1", "resnet.")
    torch.save({spell(name): tensor for name, tensor in state.items()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"Hugging Face.* has small letters") as caught:
        load_checkpoint(tmp_path / "a.pth")
    assert "name.lower().replace('/', '.')" in str(caught.value.hint)


def test_a_refusal_uses_the_names_in_the_file(tmp_path: Path) -> None:
    state = renamed(make_state(), BY_NAME["Hugging Face"], "classifier.1", "resnet.")
    key = "resnet.encoder.stages.1.layers.0.layer.1.normalization.running_var"
    del state[key]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=f"lacks {key}, so"):
        load_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ("layer1.0.se.fc1.weight", r"layer1\.0\.se\.fc1\.weight in its stem"),
        ("conv1.3.weight", r"conv1\.3\.weight in its stem"),
    ],
)
def test_other_variants_are_refused_by_name(tmp_path: Path, extra: str, named: str) -> None:
    torch.save({**make_state(), extra: torch.zeros(4, 8, 1, 1, 1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(tmp_path / "a.pth")


def test_a_deep_stem_is_refused(tmp_path: Path) -> None:
    state = make_state()
    for index in (0, 3, 6):  # timm's resnet34d
        state[f"conv1.{index}.weight"] = torch.zeros(8, 8, 3, 3)
    del state["conv1.weight"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"unknown tensor conv1\.0\.weight, conv1\.3\.weight"):
        load_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["layer999999999.0.conv1.weight", "layer9.0.conv1.weight"])
def test_stages_beyond_all_networks_are_refused(tmp_path: Path, name: str) -> None:
    torch.save({**make_state(), name: torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"(lacks|unknown tensor) layer9"):
        load_checkpoint(tmp_path / "a.pth")


def test_a_state_dict_of_many_networks_is_refused() -> None:
    state = {f"k{n}.layer1.0.conv1.weight": torch.zeros(1) for n in range(1000)}
    with pytest.raises(ValueError, match="more than 50 networks"):
        name_tensors(state, "")
