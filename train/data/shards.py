"""Images in tar files of the WebDataset format.

Source: Aizman, Maltby, Breuel, "High performance I/O for large scale deep learning" (2020),
arXiv:2001.01858: members whose paths are equal up to the first dot of the name form a sample, and
its `.cls` member holds the class number. The files are indexed once and then read in any order, so
shuffling and resuming work exactly as with a folder.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from resdeploy.errors import DataError, ImageError, one_line_reason, remedy_for
from resdeploy.filesystem import check_file
from resdeploy.images.class_folders import LabelledImages, read_labels
from resdeploy.images.class_mapping import sort_classes
from resdeploy.images.decode import MAX_FILE_BYTES, SUFFIXES
from resdeploy.images.folder import is_hidden
from resdeploy.readable_text import readable

CLASS_SUFFIX = ".cls"
MAX_CLASSES = 1_000_000


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
        if self.size > MAX_FILE_BYTES:
            raise ImageError(
                f"{self} has {self.size} bytes, more than {MAX_FILE_BYTES >> 20} MiB",
                "scale the image down",
            )
        try:
            with self.shard.open("rb") as stream:
                stream.seek(self.offset)
                return stream.read(self.size)
        except OSError as error:
            raise ImageError(
                f"{self} cannot be read: {one_line_reason(error)}",
                remedy_for(error, "copy the tar file again"),
            ) from error

    def __str__(self) -> str:
        return f"{self.shard}:{self.name}"


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
    return sorted(entry for entry in entries if entry.suffix == ".tar")


def read_shards(folder: Path) -> LabelledImages[TarMember]:
    """Index the tar files of `folder`, in the order of their members.

    The class of a sample is the number in its `.cls` member, and line number N of
    `folder/labels.txt`, if this file exists, names class N - 1. Without `.cls` members, the class
    is the folder inside the tar file, below folders that all images share.

    Raises:
        DataError: A tar file is compressed or damaged, or the class of a sample is unknown.
    """
    samples = [sample for shard in find_shards(folder) for sample in _samples(shard)]
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
    return LabelledImages(classes=classes, files=files, labels=tuple(labels))


def _samples(shard: Path) -> Iterator[tuple[TarMember, int | None]]:
    """Yield the images of a tar file, each with the number in its `.cls` member if it has one."""
    images: dict[str, TarMember] = {}
    numbers: dict[str, int] = {}
    hint = "decompress it to a plain .tar, or copy it again"
    check_file(shard, DataError, hint)
    try:
        with tarfile.open(shard, "r:") as archive:
            for info in archive:
                path = PurePosixPath(info.name)
                if not info.isreg() or not path.name or _is_hidden_path(path):
                    continue
                key = str(path.with_name(path.name.split(".")[0]))
                if path.suffix.lower() in SUFFIXES:
                    images[key] = TarMember(shard, info.name, info.offset_data, info.size)
                elif path.suffix == CLASS_SUFFIX:
                    numbers[key] = _number(shard, info, archive)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{shard} cannot be read as a tar file: {one_line_reason(error)}",
            remedy_for(error, hint),
        ) from error
    for key, member in images.items():
        yield member, numbers.get(key)


def _number(shard: Path, info: tarfile.TarInfo, archive: tarfile.TarFile) -> int:
    stream = archive.extractfile(info)
    text = stream.read(16) if stream else b""
    if not text.strip().isdigit() or (number := int(text)) >= MAX_CLASSES:
        raise DataError(
            f"{shard}:{info.name} holds {text.decode(errors='replace')!r}, not a class number",
            f"write the class as a number from 0 to {MAX_CLASSES - 1}",
        )
    return number


def _is_hidden_path(path: PurePosixPath) -> bool:
    return any(is_hidden(part) for part in path.parts if part != "..")


def _class_folders(members: Sequence[TarMember]) -> list[str]:
    """Return the name of each member's class folder, the first that not all members share."""
    parents = [PurePosixPath(member.name).parent.parts for member in members]
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
