"""Images in tar files of the WebDataset format.

Source: Aizman, Maltby, Breuel, "High performance I/O for large scale deep learning" (2020),
arXiv:2001.01858: members whose paths are equal up to the first dot of the name form a sample, and
its `.cls` member holds the class number. The files are indexed once and then read in any order, so
shuffling and resuming work exactly as with a folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from resdeploy.errors import DataError, ImageError, one_line_reason, remedy_for
from resdeploy.filesystem import check_file, open_regular
from resdeploy.images.class_folders import LabelledImages, read_labels
from resdeploy.images.class_mapping import sort_classes
from resdeploy.images.decode import MAX_IMAGE_BYTES
from resdeploy.images.folder import is_hidden
from resdeploy.images.formats import SUFFIXES, PictureFilter, warn_passed_over
from resdeploy.readable_text import readable
from resdeploy.tar_members import CLASS_SUFFIX, TAR_HINT, tar_samples, unpacked_place

BESIDE = "beside the tar files"


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
    """Yield the images of a tar file, each with the number in its `.cls` member if it has one."""
    check_file(shard, DataError, TAR_HINT)
    try:
        with open_regular(shard) as stream:
            for entry, number in tar_samples(str(shard), stream, pictures):
                yield TarMember(shard, entry.name, entry.offset, entry.size), number
    except OSError as error:
        raise DataError(
            f"{shard} cannot be read as a tar file: {one_line_reason(error)}",
            remedy_for(error, TAR_HINT),
        ) from error


def _class_folders(members: Sequence[TarMember]) -> list[str]:
    """Return the name of each member's class folder, the first that not all members share."""
    parents = [unpacked_place(member.name).parent.parts for member in members]
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
