"""Images in tar files of the WebDataset format.

Source: Aizman, Maltby, Breuel, "High performance I/O for large scale deep learning" (2020),
arXiv:2001.01858: members whose paths are equal up to the first dot of the name form a sample, and
its `.cls` member holds the class number. The files are indexed once and then read in any order, so
shuffling and resuming work exactly as with a folder.
"""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from resdeploy.errors import DataError, ImageError, one_line_reason, remedy_for
from resdeploy.filesystem import check_file, open_regular
from resdeploy.images.class_folders import LabelledImages, read_labels
from resdeploy.images.class_mapping import sort_classes
from resdeploy.images.decode import MAX_IMAGE_BYTES
from resdeploy.images.folder import is_hidden
from resdeploy.images.formats import HEAD_BYTES, SUFFIXES, PictureFilter, warn_passed_over
from resdeploy.readable_text import readable

CLASS_SUFFIX = ".cls"
MAX_CLASSES = 1_000_000
_EXTENSIONS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
# What `tarfile` raises besides its own errors for damaged or endless extensions.
_DAMAGE = (ValueError, LookupError, ArithmeticError, RecursionError)
BESIDE = "beside the tar files"
LINKS = "links and sparse files in a tar file"
REPLACED = "older versions of members of a tar file"
MAX_EXTENSION_BYTES = 1 << 20  # of the long name or the PAX headers of a member, read into memory


@dataclass(frozen=True, slots=True)
class TarMember:
    """An image file inside a tar file."""

    shard: Path
    name: str
    offset: int
    """Position of the first byte in the tar file."""
    size: int
    """Size in bytes."""

    def read(self) -> bytes:
        """Return the content of the image file.

        Raises:
            ImageError: The image file is too large, or the tar file cannot be read.
        """
        if self.size > MAX_IMAGE_BYTES:
            raise ImageError(
                f"{self} has {self.size} bytes, more than {MAX_IMAGE_BYTES >> 20} MiB",
                "scale the image down",
            )
        try:
            with open_regular(self.shard) as stream:
                stream.seek(self.offset)
                return stream.read(self.size)
        except OSError as error:
            raise ImageError(
                f"{self} cannot be read: {one_line_reason(error)}",
                remedy_for(error, "copy the tar file again"),
            ) from error

    def __str__(self) -> str:
        return f"{self.shard}:{self.name}"


class _CheckedTarInfo(tarfile.TarInfo):
    """A member whose size is checked before `tarfile` reads or skips so many bytes."""

    @classmethod
    def frombuf(cls, *arguments: Any, **options: Any) -> _CheckedTarInfo:
        info = super().frombuf(*arguments, **options)
        is_extension = info.type in _EXTENSIONS
        if not 0 <= info.size <= (MAX_EXTENSION_BYTES if is_extension else sys.maxsize):
            raise tarfile.ReadError(f"{readable(info.name)!r} has the size {info.size}")
        return info


ImageFile = Path | TarMember


def image_content(file: ImageFile) -> Path | bytes:
    """Return the source that `read_rgb` accepts: a path, or the bytes of a tar member.

    Raises:
        ImageError: The tar member cannot be read.
    """
    return file if isinstance(file, Path) else file.read()


def find_shards(folder: Path) -> list[Path]:
    """Return the sorted tar files in a folder; none if it has subfolders, which are classes."""
    entries = [entry for entry in folder.iterdir() if not is_hidden(entry.name)]
    if any(entry.is_dir() for entry in entries):
        return []
    return sorted(entry for entry in entries if entry.suffix == ".tar" and entry.is_file())


def read_shards(folder: Path) -> LabelledImages[TarMember]:
    """Index the tar files of `folder`, in the order of their members.

    The class of a sample is the number in its `.cls` member, and line number N of
    `folder/labels.txt`, if this file exists, names class N - 1. Without `.cls` members, the class
    is the folder inside the tar file, below folders that all images share.

    Raises:
        DataError: A tar file is compressed or damaged, or the class of a sample is unknown.
    """
    pictures = PictureFilter()
    shards = find_shards(folder)
    samples = [sample for shard in shards for sample in _samples(shard, pictures)]
    for entry in folder.iterdir():
        is_beside = entry not in shards and not is_hidden(entry.name)
        if is_beside and pictures.accepts(entry.name, bytes):
            pictures.passed_over[BESIDE] += 1
    warn_passed_over(folder, pictures.passed_over)
    if not samples:
        raise DataError(
            f"the tar files in {folder} hold no images",
            f"add images that end in {', '.join(sorted(SUFFIXES))}",
        )
    labels = [number for _, number in samples if number is not None]
    if not labels:
        names = _class_folders([member for member, _ in samples])
        classes = sort_classes(list(set(names)))
        index = {name: position for position, name in enumerate(classes)}
        labels = [index[name] for name in names]
    elif len(labels) == len(samples):
        classes = _class_names(folder, max(labels) + 1)
    else:
        unnumbered = next(member for member, number in samples if number is None)
        raise DataError(
            f"{unnumbered} has no {CLASS_SUFFIX} file, but other images have one",
            f"add a {CLASS_SUFFIX} file to every image, or remove all and use class folders",
        )
    files = tuple(member for member, _ in samples)
    return LabelledImages(
        classes=classes, files=files, labels=tuple(labels), passed_over=pictures.passed_over
    )


def _samples(shard: Path, pictures: PictureFilter) -> Iterator[tuple[TarMember, int | None]]:
    """Yield the images of a tar file, each with the number in its `.cls` member if it has one.

    Of members with the same name, the last one counts, as when the tar file is unpacked.
    """
    found: dict[str, TarMember | int] = {}
    hint = "decompress it to a plain .tar, or copy it again"
    check_file(shard, DataError, hint)
    try:
        with (
            open_regular(shard) as stream,
            tarfile.open(fileobj=stream, mode="r:", tarinfo=_CheckedTarInfo) as archive,
        ):
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # they would fill the memory
                path, is_file = _place(info.name), info.isreg() and not info.issparse()
                blocks = -(-info.size // tarfile.BLOCKSIZE) if is_file else 0
                rest = archive.offset - info.offset_data - blocks * tarfile.BLOCKSIZE
                if rest < 0 or (is_file and rest):
                    raise tarfile.ReadError(f"{readable(info.name)!r} has contradictory sizes")
                if info.isdir() or not path.name or any(map(is_hidden, path.parts)):
                    continue
                is_number = path.suffix == CLASS_SUFFIX and is_file
                if not is_number and not pictures.accepts(path.name, partial(_head, archive, info)):
                    continue
                if found.pop(str(path), None) is not None:
                    pictures.passed_over[REPLACED] += 1
                if is_number:
                    found[str(path)] = _number(shard, info, archive)
                elif is_file:
                    found[str(path)] = TarMember(shard, info.name, info.offset_data, info.size)
                else:
                    pictures.passed_over[LINKS] += 1
            _check_end(stream, archive.offset)
    except (tarfile.TarError, OSError, EOFError, *_DAMAGE) as error:
        raise DataError(
            f"{shard} cannot be read as a tar file: {one_line_reason(error)}",
            remedy_for(error, hint),
        ) from error
    images: dict[str, list[TarMember]] = {}
    numbers: dict[str, list[int]] = {}
    for place, member in found.items():
        key = str(PurePosixPath(place).with_name(PurePosixPath(place).name.split(".")[0]))
        if isinstance(member, TarMember):
            images.setdefault(key, []).append(member)
        else:
            numbers.setdefault(key, []).append(member)
    for key, members in images.items():
        labels = numbers.get(key, [])
        if len(labels) > 1 or (labels and len(members) > 1):
            names = ", ".join(member.name for member in members[:3])
            raise DataError(
                f"{len(members)} images and {len(labels)} {CLASS_SUFFIX} files of {shard} share "
                f"the key {key!r}, which ends at the first dot: {names}",
                "use names without further dots, or remove the .cls files and use class folders",
            )
        for member in members:
            yield member, labels[0] if labels else None


def _head(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(info) if info.isreg() else None
    return stream.read(HEAD_BYTES) if stream else b""


def _check_end(stream: BinaryIO, offset: int) -> None:
    """Raise a ReadError if members may be missing after `offset`, where `tarfile` stopped.

    It stops without an error at a cut or damaged header, and at the end mark within two tar files
    that were joined. At the end of a tar file, everything from the end mark on is zeros.
    """
    stream.seek(offset)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it ends without an end mark, so members may be missing")
    while block:
        if block.strip(b"\0"):
            raise tarfile.ReadError(f"it has a damaged header or joined data after byte {offset}")
        block = stream.read(1 << 20)


def _number(shard: Path, info: tarfile.TarInfo, archive: tarfile.TarFile) -> int:
    stream = archive.extractfile(info)
    text = stream.read(16) if stream else b""
    if not text.strip().isdigit() or (number := int(text)) >= MAX_CLASSES:
        raise DataError(
            f"{shard}:{info.name} holds {text.decode(errors='replace')!r}, not a class number",
            f"write the class as a number from 0 to {MAX_CLASSES - 1}",
        )
    return number


def _place(name: str) -> PurePosixPath:
    """Return where GNU tar would unpack a member: without the root, and below all `..`."""
    parts = PurePosixPath(name).parts
    cut = max((n for n, part in enumerate(parts) if part.strip("/") in ("", "..")), default=-1)
    return PurePosixPath(*parts[cut + 1 :])


def _class_folders(members: Sequence[TarMember]) -> list[str]:
    """Return the name of each member's class folder, the first that not all members share."""
    parents = [_place(member.name).parent.parts for member in members]
    if () in parents:
        raise DataError(
            f"{members[parents.index(())]} has no class: it has no {CLASS_SUFFIX} file and is in "
            "no folder",
            f"add KEY{CLASS_SUFFIX} with the class number next to KEY.jpg",
        )
    depth, deepest = 0, min(map(len, parents)) - 1
    while depth < deepest and len({parts[depth] for parts in parents}) == 1:
        depth += 1
    return [readable(parts[depth]) for parts in parents]


def _class_names(folder: Path, count: int) -> tuple[str, ...]:
    path = folder / "labels.txt"
    if not path.is_file():
        return tuple(str(number) for number in range(count))
    names = read_labels(path, DataError)
    if len(names) < count or len(set(names)) != len(names) or "" in names:
        raise DataError(
            f"{path} has {len(set(names))} different names for {count} classes",
            "write one name per line, all different, in the order of the class numbers",
        )
    return names
