"""Rows to score, and the content of their pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from resdeploy.errors import ImageError
from resdeploy.runtime.scoring.storage import is_url, read_picture


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureRow:
    """A picture of a folder, a tar file or a table of names."""

    path: str
    """Name in the result."""
    place: str
    """Path or URL of the picture, or of the tar file that holds it."""
    label: str | None = None
    """Name of the true class, if the source has one."""
    offset: int | None = None
    """Position in a tar file."""
    size: int | None = None
    """Size in a tar file, in bytes."""
    stamp: str = ""
    """Size and time of the file, or its digest in a store; they change with the file."""

    @property
    def identity(self) -> str:
        """Text that must be the same when a scoring is resumed."""
        return "\0".join(
            map(str, (self.path, self.place, self.label, self.offset, self.size, self.stamp))
        )

    @property
    def is_remote(self) -> bool:
        """True if the picture is in a store, so that reading it means waiting."""
        return is_url(self.place)

    def read(self) -> Path | bytes:
        """Return the path of the picture, or its content.

        Raises:
            ImageError: It cannot be read.
        """
        if not self.place:
            raise ImageError(f"{self.path} names no picture", "leave the row out, or name one")
        return read_picture(self.place, self.offset, self.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentRow:
    """A picture whose content stands in a table."""

    path: str
    label: str | None
    content: bytes | None
    is_remote: ClassVar[bool] = False

    def read(self) -> bytes:
        """Return the content of the picture.

        Raises:
            ImageError: The table has none.
        """
        content = self.content  # frames mark missing values by NaN, too
        if not isinstance(content, (bytes, bytearray, memoryview)) or not content:
            hint = "leave the row out, or write the bytes of the picture"
            raise ImageError(f"{self.path} has no content", hint)
        return bytes(content)


Row = PictureRow | ContentRow
