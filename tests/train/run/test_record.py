"""Tests of the record of a run, and of the comparison of its data."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from resdeploy.errors import DataError, TrainingError
from resdeploy.images.class_folders import HeldOut
from resdeploy.train.config import TrainingConfig
from resdeploy.train.data.dataset import read_splits
from resdeploy.train.model.architecture import Architecture, Shortcut
from resdeploy.train.run.record import (
    DataIdentity,
    RunRecord,
    check_same_data,
    identify_data,
    load_record,
    save_record,
)

RECORD = RunRecord(
    id="1a",
    command="resdeploy train",
    config=TrainingConfig(seed=7, shortcut=Shortcut.C, init="/a.pth"),
    data=DataIdentity(
        classes=("cat", "über"),
        images={"train": 5},
        sha256={"train": "00"},
        held_out=HeldOut(seed=7, sha256="01"),
    ),
    architecture=Architecture(classes=2, shortcut=Shortcut.C),
    labels=("über", "cat"),
    outputs=(1, 0),
    teacher_sha256="ff",
)


def identify(folder: Path) -> DataIdentity:
    return identify_data(folder, read_splits(folder))


def test_record_round_trip(tmp_path: Path) -> None:
    save_record(tmp_path, RECORD)
    assert load_record(tmp_path) == RECORD


@pytest.mark.parametrize(
    "text", ["1", "{", "[]", '{"format": 4}', '{"format": 4, "id": "1", "config": {"epochs": "x"}}']
)
def test_a_damaged_record_is_a_training_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(TrainingError, match=r"state\.json is (damaged|empty)"):
        load_record(tmp_path)


@pytest.mark.parametrize(("text", "found"), [('{"epochs": 3}', 1), ('{"format": 9}', 9)])
def test_a_record_of_another_version_is_named(tmp_path: Path, text: str, found: int) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(TrainingError, match=f"has format {found}, and this version") as caught:
        load_record(tmp_path)
    assert "version that wrote it" in str(caught.value.hint)


def test_a_setting_of_another_version_is_a_training_error(tmp_path: Path) -> None:
    save_record(tmp_path, RECORD)
    document = json.loads((tmp_path / "state.json").read_text())
    document["config"]["colour"] = 1
    (tmp_path / "state.json").write_text(json.dumps(document))
    with pytest.raises(TrainingError, match=r"damaged: .*colour"):
        load_record(tmp_path)


def test_data_in_another_place_is_the_same(image_data: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(image_data, tmp_path / "moved")
    check_same_data(identify(moved), identify(image_data), "moved", Path("run"))


def rename_class(data: Path) -> None:
    for split in ("train", "val"):
        (data / split / "blue").rename(data / split / "zebra")


def add_class(data: Path) -> None:
    for split in ("train", "val"):
        shutil.copytree(data / split / "blue", data / split / "azure")


def remove_class(data: Path) -> None:
    for split in ("train", "val"):
        shutil.rmtree(data / split / "red")


def move_image(data: Path) -> None:
    (data / "train" / "red" / "000.png").rename(data / "train" / "blue" / "900.png")


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (rename_class, "lacks the class 'blue' and has the additional class 'zebra'"),
        (add_class, "has the additional class 'azure'"),
        (remove_class, "lacks the class 'red'"),
        (lambda data: (data / "val/red/000.png").unlink(), "has 23 images in val, not 24"),
        (move_image, "has files with other names or classes in train"),
    ],
)
def test_changed_data_is_refused_with_the_difference(
    image_data: Path, tmp_path: Path, change: Callable[[Path], None], difference: str
) -> None:
    data = shutil.copytree(image_data, tmp_path / "data")
    change(data)
    with pytest.raises(DataError, match=f"(?m)not the data of run: data {difference}$") as caught:
        check_same_data(identify(data), identify(image_data), "data", Path("run"))
    assert "resdeploy train DATA --resume run" in str(caught.value.hint)


def test_another_order_of_the_classes_is_refused(image_data: Path) -> None:
    found = identify(image_data)
    other = dataclasses.replace(found, classes=found.classes[::-1])
    with pytest.raises(DataError, match="has the classes in another order"):
        check_same_data(other, found, "data", Path("run"))
