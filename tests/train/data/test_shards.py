"""Tests of reading tar files of the WebDataset format, including malicious ones."""

from __future__ import annotations

import gzip
import io
import logging
import os
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resdeploy.errors import DataError, ImageError
from resdeploy.images.class_mapping import sort_classes
from resdeploy.images.decode import MAX_IMAGE_BYTES
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.readable_text import readable
from resdeploy.train.data.dataset import BatchPlan, EpochImages, load_batches, read_splits
from resdeploy.train.data.shards import TarMember, find_shards, read_shards
from tests.samples import encoded


def picture(value: int) -> bytes:
    return encoded(Image.new("RGB", (8, 8), (value, value, value)))


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """Return a folder of two tar files with images of classes 1, 0 and 2."""
    write_tar(
        tmp_path / "a.tar",
        {"0.png": picture(10), "0.cls": b"1", "1.png": picture(20), "1.cls": b"0\n"},
    )
    write_tar(tmp_path / "b.tar", {"0.cls": b"2", "0.png": picture(30), "0.json": b"{}"})
    return tmp_path


def test_the_class_is_the_number_in_the_cls_member(numbered: Path) -> None:
    shards = read_shards(numbered)
    assert shards.classes == ("0", "1", "2")
    assert shards.labels == (1, 0, 2)
    assert [str(member) for member in shards.files] == [
        f"{numbered}/a.tar:0.png", f"{numbered}/a.tar:1.png", f"{numbered}/b.tar:0.png",
    ]  # fmt: skip
    assert [member.read() for member in shards.files] == [picture(n) for n in (10, 20, 30)]


def test_labels_txt_names_the_classes(numbered: Path) -> None:
    (numbered / "labels.txt").write_text("cat\ndog\nowl\nyak\n")
    assert read_shards(numbered).classes == ("cat", "dog", "owl", "yak")
    for text in ("cat\ndog\n", "cat\ncat\ndog\n", "cat\n\ndog\nowl\n"):
        (numbered / "labels.txt").write_text(text)
        with pytest.raises(DataError, match=r"different names for 3 classes"):
            read_shards(numbered)


def test_without_cls_members_the_folder_is_the_class(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"x/dog/1.png": picture(1), "x/cat/1.png": picture(2)})
    shards = read_shards(tmp_path)
    assert shards.classes == ("cat", "dog")
    assert shards.labels == (1, 0)


@pytest.mark.parametrize(
    ("members", "classes", "labels"),
    [
        (("cat/deep/1.png", "cat/2.png", "dog/3.png"), ("cat", "dog"), (0, 0, 1)),
        (("./a/train/dog/1.png", "./a/train/cat/x/2.png"), ("cat", "dog"), (1, 0)),
        (("val/cat/1.png", "val/cat/2.png"), ("cat",), (0, 0)),
        (("cat/1.png", "__MACOSX/cat/1.png", "cat/@eaDir/1.png"), ("cat",), (0,)),
        (("10/1.png", "2/1.png"), ("2", "10"), (1, 0)),
        ((os.fsdecode(b"\xd5/1.png"), "b\nc/1.png"), (r"\xd5", r"b\x0ac"), (0, 1)),
    ],
)
def test_the_class_folder_is_the_first_that_not_all_share(
    tmp_path: Path, members: Sequence[str], classes: Sequence[str], labels: Sequence[int]
) -> None:
    """As with folders, where the class is the folder below `train`, however deep an image is."""
    write_tar(tmp_path / "a.tar", {name: picture(1) for name in members})
    shards = read_shards(tmp_path)
    named = [shards.classes[label] for label in shards.labels]
    assert (set(shards.classes), named) == (set(classes), [classes[label] for label in labels])
    assert len(shards.classes) == 1 or shards.classes == tuple(sort_classes(classes))


def test_a_line_of_labels_txt_is_a_name_whatever_characters_it_has(numbered: Path) -> None:
    (numbered / "labels.txt").write_bytes("\ufeffcat\r\na\u2028b\r\nowl".encode())
    assert read_shards(numbered).classes == ("cat", r"a\u2028b", "owl")
    (numbered / "labels.txt").write_bytes("größe\ndog\nowl".encode("latin-1"))
    with pytest.raises(DataError, match="it is not UTF-8 text"):
        read_shards(numbered)


def test_numbers_in_val_are_those_of_the_names_in_train(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_tar(
            tmp_path / split / "0.tar",
            {f"{k}.{end}": data for k in range(12)
             for end, data in (("png", picture(k)), ("cls", str(k).encode()))},
        )  # fmt: skip
    names = tuple(f"name {k}" for k in range(12))
    (tmp_path / "train" / "labels.txt").write_text("\n".join(names))
    splits = read_splits(tmp_path)
    assert splits.val.classes == splits.train.classes == names
    assert splits.val.labels == splits.train.labels == tuple(range(12))


def test_batches_hold_the_pixels_of_the_members(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_tar(
            tmp_path / split / "0.tar",
            {"0.png": picture(10), "0.cls": b"0", "1.png": b"damaged", "1.cls": b"1"},
        )
    images = read_splits(tmp_path).train
    (batch,) = load_batches(
        [EpochImages(images, Preprocessing.standard(8))], BatchPlan(batch_size=9, shuffle=False)
    )
    np.testing.assert_array_equal(batch.images.numpy(), np.full((1, 8, 8, 3), 10, np.uint8))
    assert (batch.labels.tolist(), [*batch.unreadable]) == ([0], [1])


def test_tar_files_next_to_class_folders_are_ignored(tmp_path: Path) -> None:
    write_tar(tmp_path / "backup.tar", {"0.png": picture(1)})
    (tmp_path / "cat").mkdir()
    assert find_shards(tmp_path) == []


# Invalid tar files


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"0.png": picture(1), "0.cls": b"one"}, "holds 'one', not a class number"),
        ({"0.png": picture(1), "0.cls": b"-1"}, "not a class number"),
        ({"0.png": picture(1), "0.cls": b"9" * 16}, "not a class number"),
        ({"0.png": picture(1), "0.cls": b""}, "not a class number"),
        ({"0.png": picture(1)}, "has no class"),
        ({"a/0.png": picture(1), "1.png": picture(1), "1.cls": b"0"}, "but other images have one"),
        ({"readme.txt": b"hello"}, "hold no images"),
    ],
)
def test_rejects_images_without_a_class(
    tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=message):
        read_shards(tmp_path)


def test_rejects_a_compressed_tar_file(tmp_path: Path) -> None:
    content = write_tar(tmp_path / "a.tar", {"0.png": picture(1), "0.cls": b"0"}).read_bytes()
    (tmp_path / "a.tar").write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match="cannot be read as a tar file") as caught:
        read_shards(tmp_path)
    assert "plain .tar" in str(caught.value.hint)


def test_images_in_class_folders_may_share_a_key(tmp_path: Path) -> None:
    names = [f"a/cam1.2024-05-0{day}.frame.png" for day in (1, 2, 3)] + ["b/x.png", "b/y.JFIF"]
    write_tar(tmp_path / "a.tar", {name: picture(7) for name in names})
    found = read_shards(tmp_path)
    assert [member.name for member in found.files] == names
    assert found.labels == (0, 0, 0, 1, 1)


@pytest.mark.parametrize(
    "members",
    [
        {"x.1.png": picture(1), "x.2.png": picture(2), "x.cls": b"0"},
        {"x.1.png": picture(1), "x.1.cls": b"0", "x.2.png": picture(2), "x.2.cls": b"1"},
        {"x.1.png": picture(1), "x.1.cls": b"0", "x.2.cls": b"1"},
    ],
)
def test_rejects_several_images_or_classes_with_one_key(
    tmp_path: Path, members: dict[str, bytes]
) -> None:
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=r"share the key 'x', .*: x\.1\.png"):
        read_shards(tmp_path)


def test_other_members_and_neighbours_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = {"0.png": picture(1), "0.cls": b"0", "1.tif": b"", "2.gif": b"", "0.json": b"{}"}
    write_tar(tmp_path / "a.tar", members | {"3": picture(2), "3.cls": b"1"})
    for name in ("b.tar.gz", "c.png", "labels.txt", ".d.png"):
        (tmp_path / name).write_bytes(b"0\n1\n")
    with caplog.at_level(logging.WARNING, "resdeploy"):
        found = read_shards(tmp_path)
    assert [member.name for member in found.files] == ["0.png", "3"]
    assert found.passed_over == {".tif": 1, ".gif": 1, ".tar": 1, "beside the tar files": 1}
    assert "passed over 4 files" in caplog.text


def test_links_and_sparse_members_are_counted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("a/0.png", "a/1.png"):
            info = tarfile.TarInfo(name)
            info.size = len(picture(1))
            info.pax_headers = (
                {"GNU.sparse.map": "0,0", "GNU.sparse.size": "9"} if "1" in name else {}
            )
            archive.addfile(info, io.BytesIO(picture(1)))
        info = tarfile.TarInfo("a/2.png")
        info.type, info.linkname = tarfile.LNKTYPE, "a/0.png"
        archive.addfile(info)
    found = read_shards(tmp_path)
    assert [member.name for member in found.files] == ["a/0.png"]
    assert found.passed_over == {"links and sparse files in a tar file": 2}


def test_rejects_a_tar_file_that_is_cut_anywhere(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {f"a/{n}.png": picture(n) for n in range(4)})
    data = path.read_bytes()
    end = len(data.rstrip(b"\0")) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE + tarfile.BLOCKSIZE
    for size in range(0, end + tarfile.BLOCKSIZE, 64):
        path.write_bytes(data[:size])
        with pytest.raises(DataError, match=r"cannot be read as a tar file|is empty"):
            read_shards(tmp_path)
    path.write_bytes(data[: end + tarfile.BLOCKSIZE])  # one block of zeros marks the end
    assert len(read_shards(tmp_path).files) == 4


def test_rejects_a_damaged_header_and_joined_tar_files(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {f"a/{n}.png": picture(n) for n in range(2)})
    data = path.read_bytes()
    second = data.index(b"a/1.png")
    for content in (data + data, data[:second] + b"\xff" + data[second + 1 :]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="damaged header or joined data"):
            read_shards(tmp_path)


def test_a_pipe_with_the_name_of_a_tar_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    assert find_shards(tmp_path) == []


def test_ignores_links_and_folders_in_a_tar_file(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo(f"{kind.decode()}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    with pytest.raises(DataError, match="hold no images"):
        read_shards(tmp_path)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return a header of a member; a negative or huge size is written in base 256."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = (
        b"%011o\0" % size if 0 <= size < 8**11 else size.to_bytes(12, "big", signed=True)
    )
    if size >= 8**11:
        block[124] = 0x80
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % tarfile.BLOCKSIZE)


GOOD = header("a/0.png", len(picture(1))) + padded(picture(1))
DAMAGED = {
    "negative size": header("a/1.png", -512),
    "size of all that was read": header("a/1.png", -len(GOOD) - 512),
    "negative size of a link": header("a/1.png", -1024, tarfile.SYMTYPE),
    "negative size of a sparse file": header("a/1.png", -1024, tarfile.GNUTYPE_SPARSE),
    "size beyond the end": header("a/1.png", 1 << 20),
    "exabytes": header("a/1.png", 1 << 62),
    "long name of exabytes": header("././@LongLink", 1 << 62, tarfile.GNUTYPE_LONGNAME),
    "long name of negative size": header("././@LongLink", -512, tarfile.GNUTYPE_LONGNAME),
    "PAX header of gigabytes": header("PaxHeaders/x", 1 << 33, tarfile.XHDTYPE),
    "PAX header of megabytes": header("PaxHeaders/x", 2 << 20, tarfile.XGLTYPE) + bytes(2 << 20),
    "PAX size": header("p", 20, tarfile.XHDTYPE) + padded(b"20 size=-1000000000\n") + GOOD,
    "PAX size for all": header("p", 14, tarfile.XGLTYPE) + padded(b"14 size=99999\n") + GOOD,
    "endless long names": 2000 * (header("x", 5, tarfile.GNUTYPE_LONGNAME) + padded(b"name\0")),
    "sparse map without numbers": header("x", 512, tarfile.GNUTYPE_SPARSE)[:386] + b"x" * 126,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_impossible_sizes_end_with_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.tar").write_bytes(GOOD + DAMAGED[name] + GOOD + bytes(1024))
    with pytest.raises(DataError, match=r"a\.tar cannot be read as a tar file") as caught:
        read_shards(tmp_path)
    assert "\n" not in str(caught.value)


def test_members_are_those_that_tar_unpacks(tmp_path: Path) -> None:
    """Compare with GNU tar: hidden files of a Mac, absolute names, updates, names not UTF-8."""
    names = [
        "./._0.png", ".DS_Store", "a/.gitkeep", "a/._0.png", "a/PaxHeaders.7/0.png", "./a/0.png",
        "/a/1.png", "b/\udcd5.png", "a/0.png", "\udce9/3.png", "b/" + 150 * "n" + ".png",
    ]  # fmt: skip
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = len(picture(number))
            archive.addfile(info, io.BytesIO(picture(number)))
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xf", path, "-C", tmp_path / "out"], check=True, capture_output=True)
    unpacked = {
        file.read_bytes(): readable(file.parent.name)
        for file in (tmp_path / "out").rglob("*.png")
        if not file.name.startswith(".") and "PaxHeaders" not in str(file)
    }
    found = read_shards(path.parent)
    labels = [found.classes[label] for label in found.labels]
    assert dict(zip((member.read() for member in found.files), labels)) == unpacked
    assert len(found.files) == len(unpacked) == 5
    assert found.classes == ("\\xe9", "a", "b")
    assert found.passed_over == {"older versions of members of a tar file": 1}


def test_reading_a_member_is_limited(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"0.png": picture(1)})
    with pytest.raises(ImageError, match="bytes, more than"):
        TarMember(path, "0.png", 0, MAX_IMAGE_BYTES + 1).read()
    with pytest.raises(ImageError, match="cannot be read"):
        TarMember(tmp_path / "none.tar", "0.png", 0, 10).read()
    assert len(TarMember(path, "0.png", 0, MAX_IMAGE_BYTES).read()) == path.stat().st_size


@given(st.integers(0, 4096), st.integers(0, 255), st.booleans())
def test_a_damaged_tar_file_is_read_or_rejected(offset: int, value: int, cut: bool) -> None:
    members = {"0.png": picture(10), "0.cls": b"1", "1.png": picture(20), "1.cls": b"0"}
    folder = Path("damaged")
    data = bytearray(write_tar(folder / "a.tar", members).read_bytes())
    offset = min(offset, len(data) - 1)
    data[offset] = value
    (folder / "a.tar").write_bytes(bytes(data[:offset] if cut else data))
    try:
        shards = read_shards(folder)
    except DataError:
        return
    assert len(shards.files) == len(shards.labels)
    for member in shards.files:
        assert len(member.read()) <= len(data)
