"""Images in tar files, as WebDataset lays them out: few large files instead of millions of small.

Source: the WebDataset format, Aizman, Maltby, Breuel, "High performance I/O for large scale deep
learning" (2020), arXiv:2001.01858: members that share a path up to the first dot of the name make
one sample, `.cls` holds the class's number. The files are indexed once and then read at random, so
that shuffling, resuming and dividing an epoch are as exact as with a folder.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from resdeploy.errors import DataError, ImageError
from resdeploy.images.decode import MAX_FILE_BYTES, SUFFIXES
from resdeploy.images.folder import LabelledImages

NAMES_FILE = "labels.txt"
CLASS_SUFFIX = ".cls"
MOST_CLASSES = 1_000_000
MAX_CLASS_BYTES = 16


@dataclass(frozen=True, slots=True)
class Member:
    """An image file inside of a tar file."""

    shard: Path
    name: str
    offset: int
    """Of its first byte in the tar file."""
    size: int

    def read(self) -> bytes:
        """The image file's content.

        Raises:
            ImageError: it is too large, or the tar file cannot be read.
        """
        if self.size > MAX_FILE_BYTES:
            raise ImageError(f"{self} is larger than {MAX_FILE_BYTES >> 20} MiB", "scale it down")
        try:
            with self.shard.open("rb") as stream:
                stream.seek(self.offset)
                return stream.read(self.size)
        except OSError as error:
            raise ImageError(
                f"{self} cannot be read: {error.strerror}", "check the disk"
            ) from error

    def __str__(self) -> str:
        return f"{self.shard}:{self.name}"


ImageFile = Path | Member


def content_of(file: ImageFile) -> Path | bytes:
    """What `images.read_rgb` takes.

    Raises:
        ImageError: see `Member.read`.
    """
    return file if isinstance(file, Path) else file.read()


def shards_in(folder: Path) -> list[Path]:
    """The tar files right in a folder, sorted; none where it holds folders, of classes then."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    if any(entry.is_dir() for entry in entries):
        return []
    return sorted(entry for entry in entries if entry.suffix == ".tar")


def read_shards(folder: Path) -> LabelledImages[Member]:
    """Index the tar files of `folder`; members are sorted by tar file and place in it.

    A sample's class is the number in its `.cls` member, named by the lines of `labels.txt` in
    `folder` where there is one; without `.cls`, it is the folder inside of the tar file.

    Raises:
        DataError: a tar file is compressed or damaged, or a sample has no usable class.
    """
    numbered: list[tuple[Member, int]] = []
    named: list[tuple[Member, str]] = []
    for shard in shards_in(folder):
        for member, number in _samples(shard):
            if number is not None:
                numbered.append((member, number))
            else:
                named.append((member, _folder_of(member)))
    if numbered and named:
        raise DataError(
            f"{named[0][0]} has no {CLASS_SUFFIX} file beside it, unlike others",
            "give every image one, or none and a folder for each class",
        )
    if not numbered and not named:
        raise DataError(f"the tar files in {folder} hold no images", "check what is in them")
    if numbered:
        classes = _names(folder, max(number for _, number in numbered) + 1)
        labels = [number for _, number in numbered]
    else:
        classes = tuple(sorted({name for _, name in named}))
        index = {name: position for position, name in enumerate(classes)}
        labels = [index[name] for _, name in named]
    members = tuple(member for member, _ in [*numbered, *named])
    return LabelledImages(classes=classes, files=members, labels=tuple(labels))


def _samples(shard: Path) -> Iterator[tuple[Member, int | None]]:
    images: dict[str, Member] = {}
    numbers: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for info in archive:
                path = PurePosixPath(info.name)
                key = str(path.with_name(path.name.split(".")[0])) if path.name else ""
                if not info.isreg() or path.name.startswith("."):
                    continue
                if path.suffix.lower() in SUFFIXES:
                    images[key] = Member(shard, info.name, info.offset_data, info.size)
                elif path.suffix == CLASS_SUFFIX:
                    numbers[key] = _number(shard, info, archive)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{shard} cannot be read as a tar file: {error}",
            "copy it again; a compressed one has to be unpacked to a plain .tar",
        ) from error
    for key, member in images.items():
        yield member, numbers.get(key)


def _number(shard: Path, info: tarfile.TarInfo, archive: tarfile.TarFile) -> int:
    stream = archive.extractfile(info)
    text = stream.read(MAX_CLASS_BYTES) if stream else b""
    if not text.strip().isdigit() or (number := int(text)) >= MOST_CLASSES:
        raise DataError(
            f"{shard}:{info.name} holds {text.decode(errors='replace')!r}, not a class's number",
            "write the class as a number from 0",
        )
    return number


def _folder_of(member: Member) -> str:
    parent = PurePosixPath(member.name).parent.name
    if not parent:
        raise DataError(
            f"{member} has no class: neither a {CLASS_SUFFIX} file nor a folder",
            f"put KEY{CLASS_SUFFIX} with the class's number beside KEY.jpg",
        )
    return parent


def _names(folder: Path, count: int) -> tuple[str, ...]:
    path = folder / NAMES_FILE
    if not path.is_file():
        return tuple(str(number) for number in range(count))
    names = tuple(path.read_text("utf-8", errors="replace").splitlines())
    if len(names) < count or len(set(names)) != len(names):
        raise DataError(
            f"{path} names {len(set(names))} classes, and the tar files hold {count}",
            "write one name per line, all different, in the order of the classes' numbers",
        )
    return names
