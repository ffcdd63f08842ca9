"""Tests of training checkpoints: nesting, and the choice between weights and their average."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from resdeploy.errors import CheckpointError
from resdeploy.train.checkpoint.contents import Weights
from resdeploy.train.checkpoint.load import Checkpoint, load_checkpoint
from resdeploy.train.model.resnet import ResNet
from tests.train.checkpoint.states import SMALL_BOTTLENECK, State, assert_equal_states, make_state

RAW, AVERAGE = make_state(seed=1), make_state(seed=2)


def with_prefix(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def load(tmp_path: Path, content: object, weights: Weights = Weights.AUTO) -> Checkpoint:
    torch.save(content, tmp_path / "a.ckpt")
    return load_checkpoint(tmp_path / "a.ckpt", weights)


@pytest.mark.parametrize(
    "content",
    [
        {"net": RAW, "acc": 93.1, "epoch": 10},
        {"weights": {"module": RAW}},
        {"anything": RAW, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
        (RAW, {"param_groups": []}),
        {**RAW, "epoch": 3, "global_step": torch.tensor(7)},
        {**RAW, "total_ops": torch.zeros(1), "layer1.total_params": torch.zeros(1)},
        {"model": RAW, "grads": {n: t for n, t in AVERAGE.items() if "running" not in n}},
        {"model": RAW, "state_dict": dict(RAW)},
    ],
)
def test_the_state_dict_is_found_by_its_content(tmp_path: Path, content: object) -> None:
    loaded = load(tmp_path, content)
    assert_equal_states(loaded.state, RAW)
    assert (loaded.weights, loaded.notes) == ("raw", ())


BOTH: list[dict[str, Any]] = [
    {"state_dict": RAW, "state_dict_ema": AVERAGE},  # timm/utils/checkpoint_saver.py
    # torchvision, references/classification/train.py
    {"model": RAW, "model_ema": {**with_prefix("module.", AVERAGE), "n_averaged": torch.tensor(3)}},
    {"state_dict": with_prefix("model.", RAW) | with_prefix("ema_model.module.", AVERAGE)},
    {"model": RAW, "callbacks": {"ema": {"weights": AVERAGE}}},
    {"net": RAW, "averaged": with_prefix("module.", AVERAGE) | {"n_averaged": torch.tensor(1)}},
]


@pytest.mark.parametrize("content", BOTH, ids=" ".join)
@pytest.mark.parametrize("weights", list(Weights))
def test_of_weights_and_their_average_one_is_taken(
    tmp_path: Path, content: object, weights: Weights
) -> None:
    loaded = load(tmp_path, content, weights)
    raw = weights is Weights.RAW
    assert_equal_states(loaded.state, RAW if raw else AVERAGE)
    assert loaded.weights == ("raw" if raw else "ema")
    noted = ["--weights raw" in note for note in loaded.notes]
    assert noted == ([True] if weights is Weights.AUTO else [])


def test_an_average_of_parameters_takes_the_statistics_of_the_weights(tmp_path: Path) -> None:
    shadow = {name: tensor for name, tensor in AVERAGE.items() if "running" not in name}
    loaded = load(tmp_path, {"model": RAW, "ema": {"shadow": shadow}})
    assert_equal_states(loaded.state, RAW | shadow)


def test_an_average_alone_is_named(tmp_path: Path) -> None:
    content = with_prefix("module.", AVERAGE) | {"n_averaged": torch.tensor(5)}
    assert load(tmp_path, content).weights == "ema"
    with pytest.raises(CheckpointError, match="only a moving average"):
        load(tmp_path, content, Weights.RAW)


def test_a_missing_average_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no moving average"):
        load(tmp_path, RAW, Weights.EMA)


@pytest.mark.parametrize(
    "content",
    [
        {"best": RAW, "last": AVERAGE},
        with_prefix("teacher.", RAW) | with_prefix("student.", AVERAGE),
    ],
)
def test_two_networks_are_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(CheckpointError, match=r"several networks, in (best and last|.* and )"):
        load(tmp_path, content)


def test_content_that_holds_itself_ends() -> None:
    from resdeploy.train.checkpoint.contents import find_sections

    content: dict[str, Any] = {"a": {}}
    content["a"]["b"] = content
    assert [section.place for section in find_sections(content)] == ["", "a"]


# Whole networks


def whole(**changes: Any) -> ResNet:
    network = ResNet(SMALL_BOTTLENECK)
    for name, module in changes.items():
        network.add_module(name, module)
    return network


def test_a_whole_network_says_which_convolution_has_the_stride(tmp_path: Path) -> None:
    network = ResNet(replace(SMALL_BOTTLENECK, stride_in_1x1=True))
    loaded = load(tmp_path, {"model": network, "classes": ["a", "b", "c"]})
    assert loaded.architecture == network.architecture
    assert loaded.labels == ("a", "b", "c")


@pytest.mark.parametrize(
    ("head", "hidden", "notes"),
    [
        ([nn.Linear(128, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 3)], (5,), ()),
        ([nn.Linear(128, 5), nn.Dropout(), nn.Linear(5, 3)], (), ()),
    ],
)
def test_a_whole_network_knows_what_stands_between_linear_layers(
    tmp_path: Path, head: list[nn.Module], hidden: tuple[int, ...], notes: tuple[str, ...]
) -> None:
    network = whole(fc=nn.Sequential(*head)).eval()
    loaded = load(tmp_path, network)
    assert (loaded.architecture.hidden, loaded.notes) == (hidden, notes)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded.network()(images), network(images))


def test_a_whole_network_with_another_stride_is_refused(tmp_path: Path) -> None:
    network = whole()
    vars(network.get_submodule("layer2.0.conv2"))["stride"] = (1, 1)
    with pytest.raises(CheckpointError, match=r"stride of layer2\.0\.conv2 is \(1, 1\)"):
        load(tmp_path, network)


def test_a_whole_network_with_another_activation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"relu is .*GELU"):
        load(tmp_path, whole(relu=nn.GELU()))


def test_a_whole_network_without_pooling_is_refused(tmp_path: Path) -> None:
    network = ResNet(SMALL_BOTTLENECK)
    network.maxpool = nn.Identity()
    torch.save(network, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="maxpool is of class Identity instead of MaxPool2d"):
        load_checkpoint(tmp_path / "a.pth")


def test_the_average_of_lightning_is_its_state_dict(tmp_path: Path) -> None:
    content = {"state_dict": AVERAGE, "current_model_state": RAW, "averaging_state": {}}
    torch.save(content, tmp_path / "a.ckpt")
    checkpoint = load_checkpoint(tmp_path / "a.ckpt")
    assert checkpoint.weights == "ema"
    assert_equal_states(checkpoint.state, AVERAGE)


def test_averages_without_names_are_named(tmp_path: Path) -> None:
    torch.save({"model": RAW, "ema": {"shadow_params": [torch.zeros(2)]}}, tmp_path / "a.pth")
    checkpoint = load_checkpoint(tmp_path / "a.pth")
    assert checkpoint.weights == "raw"
    assert "shadow_params holds averaged weights" in checkpoint.notes[0]


def test_int64_tensors_of_metrics_are_no_weights(tmp_path: Path) -> None:
    state = RAW | {"confusion.matrix": torch.zeros(3, 3, dtype=torch.int64)}
    torch.save(state, tmp_path / "a.pth")
    assert_equal_states(load_checkpoint(tmp_path / "a.pth").state, RAW)


@pytest.mark.parametrize("name", ["resnetblur50-84f4748f.pth", "resnetaa50_a1h.pth"])
def test_the_file_name_of_an_antialiased_network_is_believed(tmp_path: Path, name: str) -> None:
    torch.save(RAW, tmp_path / name)
    with pytest.raises(CheckpointError, match="whose pooling resdeploy does not have"):
        load_checkpoint(tmp_path / name)
