"""Files, folders and patterns that stand for pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from resdeploy.errors import DataError
from resdeploy.runtime.picture_sources import find_pictures

FILES = (
    "b.jpg", "a/2.png", "a/10.png", "a/deep/er/x.webp", "B/y.jpeg", "a-z.jpg", "i[1].jpg", "-n.bmp",
)  # fmt: skip
OTHERS = ("._b.jpg", ".DS_Store", "notes.txt", "a/Thumbs.db", "a/.hidden/h.jpg", "__MACOSX/b.jpg")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in (*FILES, *OTHERS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"text")
    (tmp_path / "a" / "loop").symlink_to(".")
    (tmp_path / "a" / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "empty").mkdir()
    return tmp_path


def names(*sources: str) -> list[str]:
    return [str(found.path) for found in find_pictures(sources) if found and not found.error]


ALL = [
    "-n.bmp", "B/y.jpeg", "a/10.png", "a/2.png", "a/deep/er/x.webp", "a/self.jpg", "a-z.jpg",
    "b.jpg", "i[1].jpg",
]  # fmt: skip


def test_an_empty_name_is_not_the_current_folder(photos: Path) -> None:
    (found,) = find_pictures([""])
    assert found is not None
    assert isinstance(found.error, DataError)


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (["."], ALL),
        (["a", "B"], ["a/10.png", "a/2.png", "a/deep/er/x.webp", "a/self.jpg", "B/y.jpeg"]),
        (["a/deep", "a/deep"], 2 * ["a/deep/er/x.webp"]),
        (["none.jpg", "notes.txt", "._b.jpg"], ["none.jpg", "notes.txt", "._b.jpg"]),
        (["*.jpg"], ["a-z.jpg", "b.jpg", "i[1].jpg"]),
        (["i[1].jpg"], ["i[1].jpg"]),  # it exists
        (["i[[]1].jpg", "?.jpg"], ["i[1].jpg", "b.jpg"]),
        (["[aB]/*.[jp]*g"], ["B/y.jpeg", "a/10.png", "a/2.png", "a/self.jpg"]),
        (["**/*.webp"], ["a/deep/er/x.webp"]),
        (["a/**"], ["a/10.png", "a/2.png", "a/deep/er/x.webp", "a/self.jpg"]),
        (["a/d*"], ["a/deep/er/x.webp"]),  # a folder that matches
        (["**/[0-9]*"], ["a/10.png", "a/2.png"]),
        ([".*.jpg"], ["._b.jpg"]),  # asked for
    ],
)
def test_sources_are_found_in_order(photos: Path, sources: list[str], expected: list[str]) -> None:
    assert names(*sources) == expected


def test_an_absolute_pattern_gives_absolute_paths(photos: Path) -> None:
    assert names(f"{photos}/a/*.png") == [f"{photos}/a/10.png", f"{photos}/a/2.png"]


def test_files_of_folders_that_are_no_pictures_are_counted(photos: Path) -> None:
    # ._b.jpg, .DS_Store, notes.txt and Thumbs.db; hidden folders are not entered
    assert sum(found is None for found in find_pictures(["."])) == 4


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("empty", "empty holds no images"),
        ("none*.jpg", r"none\*.jpg matches no file"),
        ("a**b", "matches no file"),
        ("empty/**", "empty holds no images"),
    ],
)
def test_a_source_without_a_picture_is_an_error(photos: Path, source: str, reason: str) -> None:
    (found,) = find_pictures([source])
    assert found is not None
    with pytest.raises(DataError, match=reason):
        raise found.error or AssertionError


def test_a_folder_that_cannot_be_read_does_not_stop_the_others(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan: Callable[[Path], object] = os.scandir

    def refuse(path: Path) -> object:
        if path.name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = [entry for entry in find_pictures(["."]) if entry]
    assert [str(e.path) for e in found if not e.error] == [n for n in ALL if "deep" not in n]
    (error,) = (entry.error for entry in found if entry.error)
    assert "the folder a/deep cannot be read: Permission denied" in str(error)
