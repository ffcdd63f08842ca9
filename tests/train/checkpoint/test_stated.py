"""Tests of facts that checkpoints state: labels, sizes, normalisation, architecture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from resdeploy.errors import CheckpointError
from resdeploy.images.preprocessing import Channels, Interpolation
from resdeploy.images.preprocessing_settings import PreprocessingSettings
from resdeploy.train.checkpoint.load import Checkpoint, load_checkpoint
from tests.train.checkpoint.states import SMALL, make_state

STATE = make_state()
LABELS = ("cat", "dog", "red fox")


def load(tmp_path: Path, facts: dict[str, Any]) -> Checkpoint:
    torch.save({"model": STATE, **facts}, tmp_path / "a.pth")
    return load_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "facts",
    [
        {"classes": list(LABELS)},
        {"class_names": LABELS, "num_classes": 3},
        {"hyper_parameters": {"class_names": list(LABELS)}},
        {"class_to_idx": {"dog": 1, "red fox": 2, "cat": 0}},
        {"idx_to_class": {0: "cat", 1: "dog", 2: "red fox"}},
        {"config": {"id2label": {"2": "red fox", "0": "cat", "1": "dog"}}},
        {"meta": {"CLASSES": LABELS}},  # MMPretrain
        {"names": {0: "cat", 1: "dog", 2: "red\n fox"}},
    ],
    ids=str,
)
def test_labels_have_many_names(tmp_path: Path, facts: dict[str, Any]) -> None:
    loaded = load(tmp_path, facts)
    assert (loaded.labels, loaded.notes) == (LABELS, ())


@pytest.mark.parametrize(
    ("facts", "note"),
    [
        ({"classes": ["a", "b"]}, "classes has 2 labels for 3 classes; they are not used"),
        ({"classes": 4}, "classes is 4, but the tensors have 3 outputs"),
        (
            {"hyper_parameters": {"num_classes": 12}},
            "hyper_parameters.num_classes is 12, but the tensors have 3 outputs",
        ),
        (
            {"classes": ["cat", "dog", "wolf"], "args": {"class_names": LABELS}},
            "args.class_names differs from classes, which is used: class 2 is 'wolf' in one and "
            "'red fox' in the other",
        ),
        (
            {"class_to_idx": {"a": 0, "b": 2, "c": 2}},
            "class_to_idx does not name each class once, so it is not used",
        ),
        (
            {"names": ["crane", "dog", "Crane"]},
            "2 labels in names are equal, such as 'crane'",
        ),
        (
            {"classes": ["cat", " ", "dog"]},
            "classes does not name each class once, so it is not used",
        ),
        ({"img_size": float("inf")}, "img_size is inf, which is not used"),
        ({"std": [0.5, 0.5, 0]}, "std is [0.5, 0.5, 0], which is not used"),
        ({"img_size": "large"}, "img_size is 'large', which is not used"),
        ({"mean": [1.0, 2.0]}, r"mean is [1.0, 2.0], which is not used"),
        (
            {"arch": "resnet50"},
            "arch is 'resnet50', but the tensors are those of a resnet10-width8",
        ),
    ],
)
def test_what_is_not_believed_is_noted(tmp_path: Path, facts: dict[str, Any], note: str) -> None:
    assert load(tmp_path, facts).notes == (note,)


def test_metadata_of_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors", {"classes": "cat dog fox", "img_size": "64"})
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert loaded.labels == ("cat", "dog", "fox")
    assert loaded.settings == PreprocessingSettings(image_size=64)


def test_damaged_json_in_the_metadata_is_noted(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors", {"labels": '["cat", "do'})
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert loaded.labels is None
    assert loaded.notes == ("metadata.labels does not name each class once, so it is not used",)


HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("facts", "settings"),
    [
        (
            {"img_size": 64, "imagenet_mean": HALF, "imagenet_std": list(HALF)},
            PreprocessingSettings(image_size=64, mean=HALF, std=HALF),
        ),
        ({"args": {"input_size": (3, 64, 96)}}, PreprocessingSettings(image_size=(64, 96))),
        (
            {"config": {"image_size": {"height": 64, "width": 64}}},
            PreprocessingSettings(image_size=64),
        ),
        (  # torchvision, references/classification/train.py
            {"args": {"val_resize_size": 256, "val_crop_size": 224, "train_crop_size": 176,
                      "interpolation": "bicubic"}},
            PreprocessingSettings(image_size=224, resize=256, interpolation=Interpolation.BICUBIC),
        ),
        (
            {"args": {"mean": None, "interpolation": "", "crop_pct": 0.9}},
            PreprocessingSettings(crop_fraction=0.9),
        ),
        (
            {"hyper_parameters": {"normalize": {"mean": (124, 116, 104), "std": (58, 57, 57)}}},
            PreprocessingSettings(mean=(124, 116, 104), std=(58, 57, 57), value_range=255),
        ),
    ],
)  # fmt: skip
def test_settings_have_many_names(
    tmp_path: Path, facts: dict[str, Any], settings: PreprocessingSettings
) -> None:
    loaded = load(tmp_path, facts)
    assert loaded.settings == settings
    assert loaded.settings_source.endswith("of a.pth")
    assert loaded.notes == ()


def test_a_normalisation_within_the_network_is_a_setting(tmp_path: Path) -> None:
    inner = {
        "normalize.mean": torch.full((1, 3, 1, 1), 0.5),
        "normalize.std": torch.full((3, 1, 1), 0.25),
    }
    torch.save(STATE | inner, tmp_path / "a.pth")
    loaded = load_checkpoint(tmp_path / "a.pth")
    assert loaded.settings == PreprocessingSettings(mean=HALF, std=(0.25, 0.25, 0.25))
    assert loaded.settings_source == "tensors of a.pth"


def test_nothing_stated_is_nothing(tmp_path: Path) -> None:
    loaded = load(tmp_path, {"epoch": 3})
    assert (loaded.settings, loaded.settings_source, loaded.labels) == (None, "", None)


def test_a_network_for_grey_images_says_so(tmp_path: Path) -> None:
    torch.save(make_state(replace(SMALL, input_channels=1)), tmp_path / "a.pth")
    loaded = load_checkpoint(tmp_path / "a.pth")
    assert loaded.settings == PreprocessingSettings(channels=Channels.GRAY)
    assert loaded.architecture.input_channels == 1


def test_one_logit_with_two_stated_labels_becomes_two_classes(tmp_path: Path) -> None:
    torch.save(
        {"model": make_state(replace(SMALL, classes=1)), "classes": ["no", "yes"]},
        tmp_path / "a.pth",
    )
    loaded = load_checkpoint(tmp_path / "a.pth")
    assert (loaded.architecture.classes, loaded.labels) == (2, ("no", "yes"))
    assert loaded.network()(torch.rand(1, 3, 32, 32))[0, 0] == 0
    assert "sigmoid" in loaded.notes[0]


# config.json of Hugging Face


def write_folder(folder: Path, **config: Any) -> Path:
    save_file(STATE, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "resnet", **config}))
    return folder


def test_labels_beside_the_weights(tmp_path: Path) -> None:
    names = {str(index): label for index, label in enumerate(LABELS)}
    assert load_checkpoint(write_folder(tmp_path, id2label=names)).labels == LABELS


def test_default_names_of_hugging_face_are_no_labels(tmp_path: Path) -> None:
    names = {str(index): f"LABEL_{index}" for index in range(3)}
    assert load_checkpoint(write_folder(tmp_path, id2label=names)).labels is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_act": "gelu"}, "has the activation 'gelu'"),
        ({"downsample_in_first_stage": True}, "first stage of stride 2"),
        ({"architecture": "resnetblur18"}, "is a resnetblur18"),
    ],
)
def test_networks_with_the_same_tensors_are_refused_by_their_configuration(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(write_folder(tmp_path, **config))


def test_a_damaged_configuration_is_an_error(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        load_checkpoint(tmp_path)
