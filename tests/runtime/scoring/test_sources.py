"""Rows of folders, of tar files and of single pictures, on the disk and in a store."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from resdeploy.errors import DataError
from resdeploy.runtime.scoring import sources
from tests.runtime.scoring.helpers import listed, names, write_tar


def test_a_folder_is_searched_with_all_folders_in_it(photos: Path) -> None:
    deep = photos / "red" / "2024" / "May"
    deep.mkdir(parents=True)
    shutil.copy(photos / "red" / "000.png", deep / "z.png")
    shutil.copy(photos / "red" / "000.png", photos / "top.png")
    (photos / "red" / ".000.png").touch()
    (photos / "red" / "notes.txt").touch()
    (photos / ".hidden").mkdir()
    shutil.copy(photos / "red" / "000.png", photos / ".hidden")
    parts, summary = listed(photos)
    assert names(parts) == [
        *(str(photos / name / f"{n:03}.png") for name in ("blue", "green") for n in range(8)),
        *(str(photos / "red" / f"{n:03}.png") for n in range(8)),
        str(deep / "z.png"), str(photos / "top.png"),
    ]  # fmt: skip
    assert (summary.rows, summary.skipped) == (26, 2)
    assert summary.labels == {"blue", "green", "red", "May"}
    assert {Path(row.path).parent.name: row.label for row in parts[0].rows} == {
        "blue": "blue", "green": "green", "red": "red", "May": "May", "photos": None,
    }  # fmt: skip


def test_parts_have_a_size_and_follow_each_other_over_sources(photos: Path) -> None:
    parts, summary = listed(photos / "blue", photos / "red", photos / "green" / "000.png", size=5)
    assert [part.count for part in parts] == [5, 5, 5, 2]
    assert [part.number for part in parts] == [0, 1, 2, 3]
    assert (summary.parts, summary.rows) == (4, 17)
    assert names(parts)[8] == str(photos / "red" / "000.png")
    assert names(parts)[-1] == str(photos / "green" / "000.png")


def test_the_digest_is_that_of_names_labels_and_files(photos: Path) -> None:
    first = listed(photos)[1].digest
    assert listed(photos, size=3)[1].digest == first  # the job has the size
    picture = photos / "red" / "003.png"
    time = picture.stat().st_mtime_ns
    os.utime(picture, ns=(time, time + 1))
    touched = listed(photos)[1].digest
    os.utime(picture, ns=(time, time))
    assert listed(photos)[1].digest == first != touched
    picture.rename(photos / "red" / "9.png")
    assert listed(photos)[1].digest != first


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("", "the name of a source is empty"),
        ("nowhere", "nowhere cannot be read: No such file or directory"),
        ("nowhere.tar", "nowhere.tar cannot be read: No such file or directory"),
        ("nowhere.csv", "nowhere.csv cannot be read: No such file or directory"),
        ("empty", "empty holds no images"),
        ("pipe", "pipe cannot be read: it is not a regular file"),
    ],
)
def test_a_source_that_cannot_be_read(source: str, reason: str) -> None:
    Path("empty").mkdir()
    Path("empty/notes.txt").touch()
    os.mkfifo("pipe")
    with pytest.raises(DataError) as raised:
        listed(source)
    assert str(raised.value).startswith(reason)
    assert raised.value.hint


def test_a_folder_of_shards_is_an_error_that_says_how_they_are_named(photos: Path) -> None:
    Path("shards").mkdir()
    write_tar(Path("shards/000.tar"), {"a.png": (photos / "red" / "000.png").read_bytes()})
    with pytest.raises(DataError) as raised:
        listed("shards")
    assert "shards/*.tar" in str(raised.value.hint)


def test_a_folder_within_that_cannot_be_read_is_an_error(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(path: Path) -> os._ScandirIterator[str]:
        if Path(path).name == "green":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"the folder \S+/green cannot be read"):
        listed(photos)


def test_a_name_that_is_not_utf8_is_readable_in_the_result(photos: Path) -> None:
    name = os.fsencode(photos / "red") + b"/caf\xe9.png"
    os.rename(photos / "red" / "000.png", name)
    parts, _ = listed(photos / "red")
    row = parts[0].rows[-1]
    assert row.path == f"{photos}/red/caf\\xe9.png"
    assert os.fsencode(row.place) == name  # the file is still found


def test_a_tar_file_has_rows_by_number_and_by_folder(photos: Path) -> None:
    picture = (photos / "red" / "000.png").read_bytes()
    other = (photos / "blue" / "001.png").read_bytes()
    write_tar(
        Path("a.tar"),
        {
            "x/000.png": picture, "x/000.cls": b"2", "blue/001.png": other, "top.png": picture,
            "notes.txt": b"text", ".hidden.png": picture,
        },
    )  # fmt: skip
    parts, summary = listed("a.tar")
    assert names(parts) == ["a.tar:x/000.png", "a.tar:blue/001.png", "a.tar:top.png"]
    assert [row.label for row in parts[0].rows] == ["2", "blue", None]
    assert [row.read() for row in parts[0].rows] == [picture, other, picture]
    assert summary.labels == {"2", "blue"}


def test_a_tar_file_that_is_cut_off_or_empty(photos: Path) -> None:
    picture = (photos / "red" / "000.png").read_bytes()
    whole = write_tar(Path("a.tar"), {"1.png": picture, "2.png": picture}).read_bytes()
    for size in (3 * 512 + len(picture), 700, 10):
        Path("cut.tar").write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"cut\.tar cannot be read as a tar file"):
            listed("cut.tar")
    write_tar(Path("none.tar"), {"notes.txt": b"text"})
    with pytest.raises(DataError, match=r"none\.tar holds no pictures"):
        listed("none.tar")


def test_a_folder_in_a_store(photos: Path, store: str) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in sorted(photos.rglob("*.png")):
        memory.pipe_file(f"/bucket/{path.relative_to(photos)}", path.read_bytes())
    memory.pipe_file("/bucket/red/notes.txt", b"text")
    memory.pipe_file("/bucket/top.png", (photos / "red" / "000.png").read_bytes())
    parts, summary = listed(store)
    assert (summary.rows, summary.skipped) == (25, 1)
    assert summary.labels == {"blue", "green", "red"}
    assert f"{store}/green/003.png" in names(parts)
    assert parts[0].is_remote
    row = next(row for row in parts[0].rows if row.path == f"{store}/red/001.png")
    assert row.read() == (photos / "red" / "001.png").read_bytes()
    assert [row.label for row in parts[0].rows if row.path == f"{store}/top.png"] == [None]
    assert names(listed(f"{store}/red/001.png")[0]) == [f"{store}/red/001.png"]

    memory.pipe_file("/bucket/red/001.png", b"another")
    assert listed(store)[1].digest != summary.digest
    with pytest.raises(DataError, match="there are no pictures below memory://bucket/none"):
        listed(f"{store}/none/")
    with pytest.raises(DataError, match="memory://bucket/none cannot be used: it does not exist"):
        listed(f"{store}/none")


def test_a_tar_file_in_a_store(photos: Path, store: str) -> None:
    import fsspec

    picture = (photos / "red" / "000.png").read_bytes()
    path = write_tar(Path("a.tar"), {"red/a.png": b"x" * 700, "red/b.png": picture})
    fsspec.filesystem("memory").pipe_file("/bucket/a.tar", path.read_bytes())
    parts, _ = listed(f"{store}/a.tar")
    assert names(parts) == [f"{store}/a.tar:red/a.png", f"{store}/a.tar:red/b.png"]
    assert [row.read() for row in parts[0].rows] == [b"x" * 700, picture]


def test_a_store_without_its_package_names_it(monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    import fsspec.core

    def missing(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(DataError) as raised:
        listed("s3://bucket/photos")
    assert "Install s3fs" in str(raised.value.hint)


def test_too_many_classes_are_refused(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_LABELS", 2)
    with pytest.raises(DataError, match="more than 2 different classes"):
        listed(photos)
