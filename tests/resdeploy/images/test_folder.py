"""Folders of images are listed, labelled, matched with the model's labels, and decoded."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resdeploy.errors import DataError
from resdeploy.images.class_folders import (
    LabelledImages,
    match_labels,
    read_image_folder,
    split_folder,
)
from resdeploy.images.folder import find_images, list_images, read_batches
from resdeploy.images.preprocessing import Preprocessing


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def images_of(classes: tuple[str, ...], labels: tuple[int, ...]) -> LabelledImages[Path]:
    paths = tuple(Path(f"{index}.png") for index in range(len(labels)))
    return LabelledImages(classes=classes, files=paths, labels=labels)


def test_images_are_sorted_and_their_suffix_ignores_case(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a.png", "sub/deep/c.webp", "d.bmp", "e.jpeg")
    touch(tmp_path, "notes.txt", ".hidden.png", ".cache/f.png")
    found = [str(path.relative_to(tmp_path)) for path in list_images(tmp_path)]
    assert found == ["a.png", "b.JPG", "d.bmp", "e.jpeg", "sub/deep/c.webp"]


def test_a_missing_folder_a_file_and_an_empty_folder_are_data_errors(tmp_path: Path) -> None:
    touch(tmp_path, "file.png")
    (tmp_path / "empty").mkdir()
    for name, message in (("nothing", "there is no folder"), ("file.png", "not a folder")):
        with pytest.raises(DataError, match=message):
            list_images(tmp_path / name)
    with pytest.raises(DataError, match="holds no images") as caught:
        list_images(tmp_path / "empty")
    assert ".jpg" in str(caught.value.hint)


def test_labels_are_the_sorted_folders(tmp_path: Path) -> None:
    touch(tmp_path, "dog/1.png", "cat/2.png", "cat/deep/3.png", ".git/4.png")
    found = read_image_folder(tmp_path)
    assert found.classes == ("cat", "dog")
    assert found.labels == (0, 0, 1)
    assert [path.name for path in found.files] == ["2.png", "3.png", "1.png"]


def test_images_outside_class_folders_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "dog/1.png", "cover.png", "dog/2.gif")
    with caplog.at_level(logging.WARNING, "resdeploy"):
        found = read_image_folder(tmp_path)
    assert [path.name for path in found.files] == ["1.png"]
    assert found.passed_over == {"in no class folder": 1, ".gif": 1}
    assert match_labels(found, ["dog", "cat"]).passed_over == found.passed_over
    assert "not using 1 image beside the class folders" in caplog.text


def test_unlabelled_images_are_a_data_error(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "2.png")
    with pytest.raises(DataError, match="no labels"):
        read_image_folder(tmp_path)


def test_an_empty_class_folder_is_a_data_error(tmp_path: Path) -> None:
    touch(tmp_path, "dog/1.png")
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="cat holds no images"):
        read_image_folder(tmp_path)


def test_split_folder_is_used_if_it_exists(tmp_path: Path) -> None:
    assert split_folder(tmp_path, "val") == tmp_path
    (tmp_path / "val").mkdir()
    assert split_folder(tmp_path, "val") == tmp_path / "val"


def test_labels_are_matched_by_name() -> None:
    matched = match_labels(images_of(("cat", "dog"), (0, 1, 1)), ("dog", "emu", "cat"))
    assert matched.labels == (2, 0, 0)
    assert matched.classes == ("dog", "emu", "cat")


def test_other_names_are_matched_by_order_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "resdeploy"):
        matched = match_labels(images_of(("n01", "n02"), (1, 0)), ("tench", "goldfish"))
    assert matched.labels == (1, 0)
    assert "n01" in caplog.text


def test_folders_are_not_matched_by_order_if_any_name_is_a_label() -> None:
    with pytest.raises(DataError, match="'plane' is not one of"):
        match_labels(images_of(("cat", "dog", "plane"), (0, 1, 2)), ("airplane", "cat", "dog"))


def test_linked_folders_and_files_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/1.png", "data/dog/2.png", "elsewhere2.png")
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "dog" / "3.png").symlink_to(tmp_path / "elsewhere2.png")
    found = read_image_folder(tmp_path / "data")
    assert [path.name for path in found.files] == ["1.png", "2.png", "3.png"]
    assert found.labels == (0, 1, 1)


def test_circular_links_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "dog/1.png")
    (tmp_path / "dog" / "again").symlink_to(tmp_path)
    assert [path.name for path in list_images(tmp_path)] == ["1.png"]


def test_rejects_unknown_names_in_a_wrong_number() -> None:
    with pytest.raises(DataError, match="'n01' is not one of the 3 classes of the model"):
        match_labels(images_of(("n01", "n02"), (1, 0)), ("a", "b", "c"))


def test_batches_keep_positions_and_skip_damaged_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = []
    for index in range(5):
        paths.append(tmp_path / f"{index}.png")
        Image.new("RGB", (8, 8), (index, 0, 0)).save(paths[-1])
    paths[2].write_bytes(paths[2].read_bytes()[:40])
    with caplog.at_level(logging.WARNING, "resdeploy"):
        batches = list(read_batches(paths, Preprocessing.standard(8), batch=2))
    assert [batch.positions for batch in batches] == [(0, 1), (3, 4)]
    assert [int(image[0, 0, 0]) for batch in batches for image in batch.images] == [0, 1, 3, 4]
    assert "2.png" in caplog.text
    assert np.concatenate([batch.images for batch in batches]).shape == (4, 8, 8, 3)


def test_images_none_of_which_can_be_decoded_are_an_error_with_the_reason(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{number}.png" for number in range(5)))
    with pytest.raises(DataError, match=r"none of 5 images can be decoded: .* is empty"):
        list(read_batches(list_images(tmp_path), Preprocessing.standard(8), batch=2))


def test_other_pictures_are_counted_and_named_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a/1.jpg", "a/2.jfif", "a/3.tif", "b/4.TIF", "b/5.heic", "labels.txt", ".6.gif")
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "7", "PNG")
    os.mkfifo(tmp_path / "a" / "pipe")  # opening it would wait for ever
    (tmp_path / "a" / "gone").symlink_to(tmp_path / "nothing")
    with caplog.at_level(logging.WARNING, "resdeploy"):
        found = find_images(tmp_path)
    assert [path.name for path in found.files] == ["1.jpg", "2.jfif", "7"]
    assert found.passed_over == {".tif": 2, ".heic": 1}
    assert len(caplog.messages) == 1
    assert "passed over 3 files (.tif 2, .heic 1)" in caplog.text


def test_a_folder_with_only_other_pictures_is_an_error_that_names_them(tmp_path: Path) -> None:
    touch(tmp_path, "1.tif", "2.tif")
    with pytest.raises(DataError, match=r"holds no images that are read; .* 2 files \(\.tif 2\)"):
        find_images(tmp_path)


def test_a_file_without_ending_and_permission_is_kept_for_the_error_of_its_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "0001", "0002.xyz")
    opened = os.open

    def refusing(path: Any, *arguments: Any) -> int:
        if Path(path).parent == tmp_path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return opened(path, *arguments)

    monkeypatch.setattr(os, "open", refusing)
    assert find_images(tmp_path).files == (tmp_path / "0001",)
    with pytest.raises(DataError, match="0001 cannot be read: Permission denied"):
        list(read_batches([tmp_path / "0001"], Preprocessing.standard(8), batch=2))


def test_the_last_batch_may_be_smaller(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    batches = list(read_batches([tmp_path / "a.png"] * 3, Preprocessing.standard(8), batch=2))
    assert [len(batch.images) for batch in batches] == [2, 1]


def test_rejects_an_unreadable_folder_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tests may run as root, which can read every folder, so a fake denies the permission.
    (tmp_path / "closed").mkdir()
    (tmp_path / "1.png").write_bytes(b"")
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match="closed cannot be read: Permission denied"):
        list_images(tmp_path)


def test_pictures_of_one_colour_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
    Image.linear_gradient("L").save(tmp_path / "grey.png")
    with caplog.at_level(logging.WARNING, "resdeploy"):
        (batch,) = read_batches(list_images(tmp_path), Preprocessing.standard(8), batch=2)
    assert len(batch.images) == 2
    assert caplog.messages == [
        f"using {tmp_path / 'black.png'}: it has pixels of one colour only, so its prediction "
        "means nothing"
    ]


def test_a_very_deep_tree_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(70):
        os.mkdir("d")
        os.chdir("d")
    Path("a.jpg").touch()
    with pytest.raises(DataError, match="more than 64 levels") as caught:
        find_images(tmp_path)
    assert len(str(caught.value)) < 300


def test_a_bundle_is_not_proposed_as_a_folder_of_images(tmp_path: Path) -> None:
    touch(tmp_path, "photos.bundle/manifest.json", "photos.bundle/fp32.onnx")
    with pytest.raises(DataError) as caught:
        list_images(tmp_path / "photoz")
    assert caught.value.hint == "name a folder of images"
    touch(tmp_path, "photos/cats/1.jpg")
    with pytest.raises(DataError) as caught:
        list_images(tmp_path / "photoz")
    assert caught.value.hint == f"did you mean {tmp_path / 'photos'}?"
