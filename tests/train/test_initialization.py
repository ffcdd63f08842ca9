"""Tests of networks that start from a checkpoint whose classes have an order of their own."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from resdeploy.errors import TrainingError
from resdeploy.export.quantization.qat_initialization import train_quantized
from resdeploy.images.preprocessing import Interpolation, Preprocessing
from resdeploy.images.preprocessing_settings import PreprocessingSettings
from resdeploy.train.checkpoint.load import load_checkpoint
from resdeploy.train.config import TrainingConfig
from resdeploy.train.initialization import (
    initial_network,
    prepare,
    with_new_head,
)
from resdeploy.train.model.architecture import Shortcut
from resdeploy.train.model.resnet import ResNet
from resdeploy.train.trainer import train
from tests.samples import CLASSES, FAMILY, SIZE, TINY, make_classifier

REVERSED = tuple(reversed(CLASSES))


def write_checkpoint(path: Path, labels: Sequence[str] | None, network: ResNet) -> Path:
    metadata = {} if labels is None else {"labels": json.dumps(labels)}
    save_file(network.state_dict(), path, {"arch": "resnet", **metadata})
    return path


@pytest.fixture(scope="module")
def trained(
    image_data: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a run whose network knows the colours of the test images."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    config = TrainingConfig(
        data=str(image_data), init=str(tiny_checkpoint), image_size=SIZE, epochs=3, batch_size=8
    )
    assert train(config, folder).accuracy > 90
    return folder


def reordered(trained: Path, path: Path) -> Path:
    """Write the same network with its outputs in the reverse order."""
    network = load_checkpoint(trained).network()
    with torch.no_grad():
        for tensor in (network.fc.weight, network.fc.bias):
            tensor.copy_(tensor.flip(0))
    return write_checkpoint(path, REVERSED, network)


@pytest.mark.parametrize("qat", [False, True])
def test_outputs_keep_their_names_in_another_order(
    trained: Path, image_data: Path, tmp_path: Path, qat: bool
) -> None:
    """Train with a learning rate that changes nothing: labels of another order would show."""
    init = reordered(trained, tmp_path / "reversed.safetensors")
    config = TrainingConfig(
        data=str(image_data), init=str(init), image_size=SIZE, epochs=1, batch_size=8, lr=1e-9,
        qat=qat, distillation=0.9 if qat else 0.0, recipe="qat" if qat else "finetune",
    )  # fmt: skip
    result = (train_quantized if qat else train)(config, tmp_path / "run")
    assert result.accuracy > 90  # as before; with the labels in another order, 33 % or less
    after = load_checkpoint(tmp_path / "run")
    assert after.labels == REVERSED
    if not qat:
        torch.testing.assert_close(
            after.state["fc.weight"], load_checkpoint(init).state["fc.weight"], rtol=0, atol=1e-6
        )


def config_of(init: Path, **settings: Any) -> TrainingConfig:
    return dataclasses.replace(TrainingConfig(init=str(init), data="photos"), **settings)


def test_similar_names_are_the_same_class(tmp_path: Path) -> None:
    labels = ("Red", "dark_blue", "green")
    init = write_checkpoint(tmp_path / "a.safetensors", labels, make_classifier().network)
    initial = initial_network(config_of(init, qat=True), ("dark blue", "green", "red"))
    assert initial.labels == labels
    assert initial.outputs == (1, 2, 0)


@pytest.mark.parametrize("classes", [("blue", "green", "rot"), ("a", "b", "c"), CLASSES[:2]])
def test_other_classes_give_a_new_head_and_are_refused_with_qat(
    tmp_path: Path, classes: Sequence[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "resdeploy")
    network = make_classifier().network
    init = write_checkpoint(tmp_path / "a.safetensors", CLASSES, network)
    initial = initial_network(config_of(init), classes)
    assert initial.labels == tuple(classes)
    assert initial.network.fc.out_features == len(classes)
    assert not torch.equal(initial.network.fc.weight[:2], network.fc.weight[:2])
    assert torch.equal(initial.network.conv1.weight, network.conv1.weight)
    assert "is replaced by a new one: " in caplog.text
    with pytest.raises(TrainingError, match="--qat cannot change the classes of"):
        initial_network(config_of(init, qat=True), classes)


def test_the_settings_choose_a_network_of_the_family() -> None:
    config = TrainingConfig(arch="resnext50-32x4d", stem="cifar", shortcut=Shortcut.A)
    with torch.device("meta"):
        network = initial_network(config, CLASSES).network
    assert network.architecture.name == "resnext50-32x4d-A-cifar"
    assert network.architecture.classes == len(CLASSES)
    again = TrainingConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert again == config


def test_a_new_head_keeps_the_hidden_layers() -> None:
    network = make_classifier(FAMILY["grouped-concat"]).network
    hidden = network.fc[0].weight.clone()
    images = torch.zeros(2, 3, SIZE, SIZE)
    assert with_new_head(network, 7)(images).shape == (2, 7)
    assert torch.equal(network.fc[0].weight, hidden)
    assert ResNet(network.architecture).load_state_dict(network.state_dict())


def test_qat_refuses_other_classes_before_it_calibrates(
    tmp_path: Path, image_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = write_checkpoint(tmp_path / "a.safetensors", ("a", "b", "c"), make_classifier().network)
    name = "resdeploy.export.quantization.qat_initialization.calibrate"
    monkeypatch.setattr(name, lambda *_, **__: pytest.fail("calibrated"))
    config = config_of(init, data=str(image_data), image_size=SIZE, qat=True)
    with pytest.raises(TrainingError, match="the folder 'blue' is not one of the 3 classes of"):
        train_quantized(config, tmp_path / "run")


def test_a_file_without_names_is_taken_by_number_or_as_a_guess(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    init = write_checkpoint(tmp_path / "a.safetensors", None, make_classifier().network)
    assert initial_network(config_of(init), ("2", "0", "1")).labels == ("0", "1", "2")
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    assert initial_network(config_of(init), CLASSES).labels == CLASSES
    assert "their order is a guess: 'blue' is 'class 0'" in caplog.text


def test_equal_labels_of_a_checkpoint_need_numbers(tmp_path: Path) -> None:
    labels = ("crane", "dog", "crane")
    init = write_checkpoint(tmp_path / "a.safetensors", labels, make_classifier().network)
    assert initial_network(config_of(init), ("0", "1", "2")).labels == labels
    with pytest.raises(TrainingError, match="'crane' fits two labels"):
        initial_network(config_of(init, qat=True), ("crane", "dog", "x"))


def test_the_names_of_a_new_network_are_those_of_the_data() -> None:
    initial = initial_network(TrainingConfig(), ("b", "a"))
    assert (initial.labels, initial.outputs) == (("b", "a"), (0, 1))
    assert initial.network.architecture.classes == 2


# Pre-processing of --init


def test_training_takes_the_preprocessing_that_its_initial_weights_state(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(ResNet(TINY).state_dict(), weights)
    config = TrainingConfig(init=str(weights), image_size=48)
    assert prepare(config)[0] == config  # nothing is stated
    stated = {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9, "interpolation": "bicubic"}
    document = {"architecture": "resnet10", "pretrained_cfg": {**stated, "input_size": [3, 32, 32]}}
    (tmp_path / "config.json").write_text(json.dumps(document))
    found = prepare(config)[0].preprocessing
    assert found is not None
    assert (found.image_size, found.resize) == (48, 53)  # 48 / 0.9, rounded down
    assert (found.mean, found.std) == ((0.5,) * 3, (0.5,) * 3)
    assert found.interpolation is Interpolation.BICUBIC


def test_options_of_the_training_come_before_its_initial_weights(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    torch.save({"state_dict": ResNet(TINY).state_dict(), "mean": [0.5] * 3}, weights)
    chosen = Preprocessing(image_size=32, resize=32)
    config = TrainingConfig(init=str(weights), image_size=32, preprocessing=chosen)
    assert prepare(config)[0] == config


def test_an_option_changes_one_setting_of_the_initial_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = tmp_path / "weights.pth"
    stated = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "img_size": 96}
    torch.save({"state_dict": ResNet(TINY).state_dict(), **stated}, weights)
    option = PreprocessingSettings(mean=(0.4, 0.4, 0.4))
    config, _ = prepare(TrainingConfig.from_recipe(init=str(weights), image_size=48), option)
    found = config.preprocessing
    assert found is not None
    assert (found.image_size, found.mean, found.std) == (48, (0.4,) * 3, (0.25,) * 3)
    assert found.interpolation is Interpolation.BICUBIC
    assert "mean 0.4,0.4,0.4 (from an option) instead of mean 0.5,0.5,0.5" in caplog.text
    assert prepare(config)[0] == config
