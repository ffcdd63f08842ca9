"""Files on the disk and in a store: reading of pictures, and the output folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from resdeploy.errors import ImageError, OutputError
from resdeploy.runtime.scoring import storage
from resdeploy.runtime.scoring.storage import OutputFolder, is_url, local_path, read_picture

pytest.importorskip("fsspec")


@pytest.mark.parametrize(
    ("name", "remote"),
    [
        ("s3://b/a.jpg", True), ("HTTPS://h/a.jpg", True), ("file:///a.jpg", False),
        ("/data/a.jpg", False), ("a.jpg", False), ("c:/a.jpg", False), ("://a.jpg", False),
        ("x/s3://a.jpg", False),
    ],
)  # fmt: skip
def test_names_of_stores_begin_with_a_protocol(name: str, remote: bool) -> None:
    assert is_url(name) == remote


def test_local_pictures_are_read_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a b%20c.bin"
    path.write_bytes(b"0123456789")
    assert read_picture(f"file://{path}", None, None) == path
    assert read_picture(str(path), 3, 4) == b"3456"
    assert local_path(f"file://{path}") == path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("memory://bucket/none.jpg", "memory://bucket/none.jpg cannot be used: it does not exist"),
        ("odd://bucket/a.jpg", "odd://bucket/a.jpg cannot be used: Protocol not known: odd"),
        ("memory://bucket/big.jpg", "memory://bucket/big.jpg is larger than 0 MiB"),
    ],
)
def test_a_picture_that_a_store_does_not_give(
    name: str, reason: str, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    monkeypatch.setattr(storage, "MAX_IMAGE_BYTES", 100)
    fsspec.filesystem("memory").pipe_file("/bucket/big.jpg", bytes(101))
    fsspec.filesystem("memory").pipe_file("/bucket/fits.jpg", bytes(100))
    assert len(read_picture(f"{store}/fits.jpg", None, None)) == 100  # type: ignore[arg-type]
    with pytest.raises(ImageError) as raised:
        read_picture(name, None, None)
    assert str(raised.value) == reason
    assert raised.value.hint


def test_members_of_tar_files_that_are_too_large_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="more than 64 MiB"):
        read_picture("none.tar", 0, (64 << 20) + 1)
    with pytest.raises(ImageError, match=r"none\.tar cannot be used: it does not exist"):
        read_picture("none.tar", 0, 10)


@pytest.mark.parametrize("place", ["local", "address", "store"])
def test_an_output_folder(place: str, store: str, tmp_path: Path) -> None:
    folder = OutputFolder(
        {"local": "out/", "address": f"file://{tmp_path}/out", "store": store}[place]
    )
    assert folder.sizes() == folder.sizes("_journal") == {}
    assert folder.read("a.txt", 10) is None
    folder.write("a.txt", b"0123456789")
    folder.write("_journal/000.json", b"{}")
    folder.write("a.txt", b"other")
    assert folder.sizes() == {"a.txt": 5}
    assert folder.sizes("_journal") == {"000.json": 2}
    assert folder.read("a.txt", 3) == b"oth"
    if place != "store":
        assert sorted(os.listdir(tmp_path / "out")) == ["_journal", "a.txt"]
        assert (tmp_path / "out" / "a.txt").read_bytes() == b"other"


def test_an_output_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        OutputFolder("file/out").write("a.txt", b"")
    with pytest.raises(OutputError, match="file cannot be used: Not a directory"):
        OutputFolder("file").sizes()
