"""Members of tar files of the WebDataset format, whose headers are checked before they are used.

Source: Aizman, Maltby, Breuel, "High performance I/O for large scale deep learning" (2020),
arXiv:2001.01858: members whose paths are equal up to the first dot of the name form a sample, and
its `.cls` member holds the class number.
"""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from resdeploy.errors import DataError, one_line_reason, remedy_for
from resdeploy.images.folder import is_hidden
from resdeploy.images.formats import HEAD_BYTES, PictureFilter
from resdeploy.readable_text import readable

CLASS_SUFFIX = ".cls"
MAX_CLASSES = 1_000_000
_EXTENSIONS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
# What `tarfile` raises besides its own errors for damaged or endless extensions.
_DAMAGE = (ValueError, LookupError, ArithmeticError, RecursionError)
LINKS = "links and sparse files in a tar file"
REPLACED = "older versions of members of a tar file"
MAX_EXTENSION_BYTES = 1 << 20  # of the long name or the PAX headers of a member, read into memory
TAR_HINT = "decompress it to a plain .tar, or copy it again"


@dataclass(frozen=True, slots=True)
class TarEntry:
    """An image file inside a tar file."""

    name: str
    offset: int
    """Position of the first byte in the tar file."""
    size: int
    """Size in bytes."""


class _CheckedTarInfo(tarfile.TarInfo):
    """A member whose size is checked before `tarfile` reads or skips so many bytes."""

    @classmethod
    def frombuf(cls, *arguments: Any, **options: Any) -> _CheckedTarInfo:
        info = super().frombuf(*arguments, **options)
        is_extension = info.type in _EXTENSIONS
        if not 0 <= info.size <= (MAX_EXTENSION_BYTES if is_extension else sys.maxsize):
            raise tarfile.ReadError(f"{readable(info.name)!r} has the size {info.size}")
        return info


def tar_samples(
    shard: str, stream: BinaryIO, pictures: PictureFilter
) -> Iterator[tuple[TarEntry, int | None]]:
    """Yield the images of a tar file, each with the number in its `.cls` member if it has one.

    Of members with the same name, the last one counts, as when the tar file is unpacked.

    Args:
        shard: Name of the tar file, for messages.
        stream: The open tar file.
        pictures: The selection of members, which counts other pictures.

    Raises:
        DataError: It is compressed or damaged, or the class of a sample is not clear.
    """
    found: dict[str, TarEntry | int] = {}
    try:
        with tarfile.open(fileobj=stream, mode="r:", tarinfo=_CheckedTarInfo) as archive:
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # they would fill the memory
                path, is_file = unpacked_place(info.name), info.isreg() and not info.issparse()
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
                    found[str(path)] = TarEntry(info.name, info.offset_data, info.size)
                else:
                    pictures.passed_over[LINKS] += 1
            _check_end(stream, archive.offset)
    except (tarfile.TarError, OSError, EOFError, *_DAMAGE) as error:
        raise DataError(
            f"{shard} cannot be read as a tar file: {one_line_reason(error)}",
            remedy_for(error, TAR_HINT),
        ) from error
    images: dict[str, list[TarEntry]] = {}
    numbers: dict[str, list[int]] = {}
    for place, member in found.items():
        key = str(PurePosixPath(place).with_name(PurePosixPath(place).name.split(".")[0]))
        if isinstance(member, TarEntry):
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


def _number(shard: str, info: tarfile.TarInfo, archive: tarfile.TarFile) -> int:
    stream = archive.extractfile(info)
    text = stream.read(16) if stream else b""
    if not text.strip().isdigit() or (number := int(text)) >= MAX_CLASSES:
        raise DataError(
            f"{shard}:{info.name} holds {text.decode(errors='replace')!r}, not a class number",
            f"write the class as a number from 0 to {MAX_CLASSES - 1}",
        )
    return number


def unpacked_place(name: str) -> PurePosixPath:
    """Return where GNU tar would unpack a member: without the root, and below all `..`."""
    parts = PurePosixPath(name).parts
    cut = max((n for n, part in enumerate(parts) if part.strip("/") in ("", "..")), default=-1)
    return PurePosixPath(*parts[cut + 1 :])
