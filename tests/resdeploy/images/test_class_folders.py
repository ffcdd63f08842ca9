"""Tests of class folders: links, system folders, names that differ in case, and label files."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from resdeploy.errors import DataError
from resdeploy.images.class_folders import (
    read_image_folder,
    read_labels,
    read_validation,
    split_folder,
)

NOT_UTF8 = os.fsdecode("照片".encode("gbk"))


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    "target", ["dog", "dog/deep", "outside"], ids=["the class", "a part of it", "elsewhere"]
)
def test_two_classes_that_are_the_same_folder_are_an_error(tmp_path: Path, target: str) -> None:
    data = tmp_path / "data"
    touch(data, "dog/1.png", "dog/deep/2.png", "outside/3.png")
    (data / "outside").rename(tmp_path / "outside")
    if target == "outside":
        (data / "dog" / "link").symlink_to(tmp_path / "outside")
    place = tmp_path / target if target == "outside" else data / target
    (data / "puppy").symlink_to(place)
    with pytest.raises(DataError, match=r"'dog' and 'puppy' both hold the images in .*/"):
        read_image_folder(data)


def test_a_link_to_another_class_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png", "dog/2.png")
    (tmp_path / "cat" / "more").symlink_to(tmp_path / "dog")
    with pytest.raises(DataError, match="'cat' and 'dog' both hold"):
        read_image_folder(tmp_path)


def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    """Without an error, the class would be missing in training."""
    touch(tmp_path, "cat/1.png", "dog/2.png")
    (tmp_path / "emu").symlink_to(tmp_path / "not mounted")
    with pytest.raises(DataError, match="emu leads nowhere"):
        read_image_folder(tmp_path)


def test_a_class_may_link_to_a_folder_twice(tmp_path: Path) -> None:
    touch(tmp_path, "data/cat/1.png", "data/dog/2.png", "more/3.png")
    for name in ("first", "second"):
        (tmp_path / "data" / "cat" / name).symlink_to(tmp_path / "more")
    found = read_image_folder(tmp_path / "data")
    assert [path.name for path in found.files] == ["1.png", "3.png", "2.png"]


def test_folders_of_the_system_are_no_classes(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png", "cat/Thumbs.db", "cat/desktop.ini", "cat/.DS_Store")
    touch(tmp_path, "cat/@eaDir/1.png/thumb.jpg", "cat/._1.png", "__MACOSX/cat/._1.png")
    touch(tmp_path, "@eaDir/2.png", "lost+found/3.png", ".ipynb_checkpoints/4.png", "desktop.ini")
    found = read_image_folder(tmp_path)
    assert (found.classes, [path.name for path in found.files]) == (("cat",), ["1.png"])


def test_numbered_classes_are_sorted_by_number(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{number}/1.png" for number in range(12)))
    found = read_image_folder(tmp_path)
    assert found.classes == tuple(str(number) for number in range(12))
    assert all(path.parent.name == found.classes[k] for path, k in zip(found.files, found.labels))


def test_images_beside_class_folders_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "cat/1.png", "cover.png")
    read_image_folder(tmp_path)
    assert "1 image beside the class folders" in caplog.text
    assert "cover.png" in caplog.text


def test_names_that_differ_in_case_are_two_classes_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "A/1.png", "a/2.png")
    assert read_image_folder(tmp_path).classes == ("A", "a")
    assert "the folders 'A' and 'a' count as two classes" in caplog.text


def test_class_names_fit_into_a_line_of_any_file(tmp_path: Path) -> None:
    touch(tmp_path, f"{NOT_UTF8}/1.png", "a\nb/2.png", "\x1b[31mred/3.png")
    found = read_image_folder(tmp_path)
    assert found.classes == (r"\x1b[31mred", r"a\x0ab", r"\xd5\xd5Ƭ")
    assert [path.name for path in found.files] == ["3.png", "2.png", "1.png"]
    assert all(path.exists() for path in found.files)


def test_a_split_is_found_in_upper_and_lower_case(tmp_path: Path) -> None:
    touch(tmp_path, "VAL")  # a file is no split
    assert split_folder(tmp_path, "val") == tmp_path
    (tmp_path / "Val").mkdir()
    assert split_folder(tmp_path, "val") == tmp_path / "Val"
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match="'Val' and 'val'"):
        split_folder(tmp_path, "val")


@pytest.mark.parametrize("has_val", [True, False])
def test_the_folder_for_validation_is_named(
    tmp_path: Path, has_val: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "resdeploy")
    folder = tmp_path / "val" if has_val else tmp_path
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "a.png").touch()
    assert read_validation(tmp_path, None).files == (folder / "cat" / "a.png",)
    assert (f"using the images in {folder}" in caplog.text) is has_val


def test_a_label_is_a_line_whatever_characters_it_has(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeffcat\r\n a\u2028b \n\n\x1b[31mdog\x0c!\n".encode())
    assert read_labels(path, DataError) == ("cat", r"a\u2028b", "", r"\x1b[31mdog\x0c!")


@pytest.mark.parametrize("content", ["a\nb".encode("utf-16"), "größe".encode("latin-1")])
def test_labels_that_are_not_utf_8_are_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(DataError, match="it is not UTF-8 text"):
        read_labels(tmp_path / "labels.txt", DataError)
