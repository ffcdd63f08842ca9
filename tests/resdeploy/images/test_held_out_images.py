"""Tests of the choice of validation images."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from pathlib import Path

import pytest

from resdeploy.errors import DataError
from resdeploy.images import class_folders
from resdeploy.images.class_folders import (
    HeldOut,
    LabelledImages,
    hold_out,
    names_digest,
    read_image_folder,
    read_validation,
    refuse_parts,
)


def images(*counts: int) -> LabelledImages[str]:
    labels = tuple(label for label, count in enumerate(counts) for _ in range(count))
    return LabelledImages(
        classes=tuple("abcdef"[: len(counts)]),
        files=tuple(f"{index}.png" for index in range(len(labels))),
        labels=labels,
        passed_over={".tif": 1},
    )


def test_a_fifth_of_each_class_is_held_out_and_no_image_is_lost() -> None:
    everything = images(50, 10, 3, 2, 1)
    train, val = hold_out(everything, 0)
    assert Counter(val.labels) == {0: 10, 1: 2, 2: 1, 3: 1}  # the only image of a class trains
    assert sorted(train.files + val.files) == sorted(everything.files)
    assert train.classes == val.classes == everything.classes
    for part in (train, val):
        assert all(everything.labels[int(file[:-4])] == label
                   for file, label in zip(part.files, part.labels))  # fmt: skip
    assert (train.passed_over, val.passed_over) == ({".tif": 1}, {})  # counted once


def test_the_choice_depends_only_on_the_seed() -> None:
    chosen = [hold_out(images(40, 40), seed)[1].files for seed in (3, 3, 4)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_another_file_or_place_changes_little() -> None:
    """Check that a network has learned none of the images that validate after a file was added."""
    names = [f"{label}/{index}.png" for label in "ab" for index in range(40)]

    def validating(root: str, names: list[str]) -> set[str]:
        everything = LabelledImages(
            classes=("a", "b"), files=tuple(root + name for name in names),
            labels=tuple(int(name.startswith("b")) for name in names),
        )  # fmt: skip
        return {file.removeprefix(root) for file in hold_out(everything, 0)[1].files}

    before = validating("", names)
    assert before == validating("/some/place/", names)
    for index in range(5):
        assert validating("", [*names, f"a/new{index}.png"]) - before <= {f"a/new{index}.png"}


def test_a_large_folder_loses_a_limited_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_folders, "MOST_HELD_OUT", 10)
    assert len(hold_out(images(100, 300), 0)[1].files) == 2 + 8


@pytest.mark.parametrize("train", [".", "train"])
def test_only_the_folder_of_the_training_is_divided_again(
    image_data: Path,
    tmp_path: Path,
    train: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "resdeploy")
    data, other = tmp_path / "photos", tmp_path / "other"
    for folder in (data, other):
        shutil.copytree(image_data / "train", folder / train)
    val = hold_out(read_image_folder(data / train), 7)[1]
    record = HeldOut(seed=7, sha256=names_digest(val, data))
    assert read_validation(data, record) == val
    assert "using only the 12 images that the training held out, of 60" in caplog.text
    assert read_validation(data / train, record) == val
    assert len(read_validation(data / train, None).files) == 60
    assert "learned" not in caplog.text
    monkeypatch.chdir(data)
    assert len(read_validation(Path(), record).files) == 12
    (data / train / "red" / "new.png").touch()  # which this seed does not choose
    assert read_validation(data, record) == val
    validating = other / val.files[0].relative_to(data)
    validating.rename(validating.with_name("new.png"))
    for folder in (other, other / train):
        assert len(read_validation(folder, record).files) == 60
    assert "if the network has learned some of them, their accuracy is too high" in caplog.text
    assert len(read_validation(image_data, record).files) == 24  # the folder `val`
    with pytest.raises(ValueError, match="seed is -1"):
        HeldOut(seed=-1, sha256="")


def test_the_parts_of_a_data_set_are_no_classes() -> None:
    refuse_parts(["valid", "invalid"], Path("tickets"))
    with pytest.raises(
        DataError, match="photos has parts of a data set as classes: Testing, training"
    ):
        refuse_parts(["Testing", "training"], Path("photos"))
