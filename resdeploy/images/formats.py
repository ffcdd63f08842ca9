"""Formats of picture files, recognised by ending and first bytes; files that are not read."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from resdeploy.tables import plural

logger = logging.getLogger(__name__)

# Every decoder reads untrusted files, so there are only those of cameras and the web. TIFF and GIF
# are left out: libtiff has dozens of codecs, the range of a TIFF's values is not fixed, and both
# hold several pictures. AVIF, HEIF and JPEG 2000 decoders are missing in some builds of Pillow.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp"})
OTHER_SUFFIXES = frozenset({
    ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jxl", ".ppm",
    ".pgm", ".pbm", ".pnm", ".tga", ".psd", ".exr", ".svg", ".dcm", ".dng", ".cr2", ".cr3", ".nef",
    ".arw", ".orf", ".raf", ".rw2", ".tar", ".tgz", ".zip",
})  # fmt: skip
"""Endings of other pictures, and of archives that may hold pictures."""
SIGNATURES = (
    ("JPEG", 0, b"\xff\xd8\xff"),
    ("PNG", 0, b"\x89PNG\r\n\x1a\n"),
    ("WEBP", 8, b"WEBP"),
    ("GIF", 0, b"GIF8"),
    ("TIFF", 0, b"II*\0"),
    ("TIFF", 0, b"MM\0*"),
    ("AVIF", 4, b"ftypavi"),
    ("HEIF", 4, b"ftyphe"),
    ("HEIF", 4, b"ftypmif1"),
    ("JPEG 2000", 4, b"jP  \r\n"),
    ("JPEG XL", 4, b"JXL \r\n"),
    ("PSD", 0, b"8BPS"),
)
HEAD_BYTES = 32  # enough for all signatures
NO_ENDING = "no ending"
OTHER_ENDINGS = "other endings"
SHOWN_ENDINGS = 6


def format_of(head: bytes) -> str | None:
    """Return the name of the picture format that a file with these first bytes has, or None."""
    for name, offset, signature in SIGNATURES:
        if head.startswith(signature, offset):
            return name
    # The headers of all BMP versions are shorter than 256 bytes; a text may begin with BM.
    return "BMP" if head.startswith(b"BM") and head[15:18] == bytes(3) else None


@dataclass(frozen=True, slots=True)
class PictureFilter:
    """Selection of the files that are read as pictures, which counts other pictures."""

    passed_over: Counter[str] = field(default_factory=Counter)
    """Number of pictures and archives that are not read, by ending."""
    _not_pictures: set[str] = field(default_factory=set)
    """Endings of which one file was not a picture, so that no other is opened."""

    def accepts(self, name: str, head: Callable[[], bytes | None]) -> bool:
        """Return True if a file is read as a picture: by its ending, or without one by its content.

        Args:
            name: Name of the file.
            head: Function that returns the first bytes, or None if they cannot be read.
        """
        suffix = os.path.splitext(name)[1].lower()
        if suffix in SUFFIXES:
            return True
        if re.search(r"\.tar\.\w+$", name):
            suffix = ".tar"
        if suffix in OTHER_SUFFIXES:
            self.passed_over[suffix] += 1
            return False
        if suffix in self._not_pictures:
            return False
        start = head()
        if start is None:
            return not suffix  # decoding then reports the reason
        found = format_of(start)
        if found in FORMATS and not suffix:
            return True
        if found:
            known = suffix if re.fullmatch(r"\.[a-z0-9_]{1,8}", suffix) else OTHER_ENDINGS
            self.passed_over[known if suffix else NO_ENDING] += 1
        elif suffix:
            self._not_pictures.add(suffix)
        return False


def passed_over_text(passed_over: Mapping[str, int]) -> str:
    """Return the counts by ending as text, such as `13 files (.tif 8, .gif 5)`."""
    order = sorted(passed_over.items(), key=lambda entry: (-entry[1], entry[0]))
    shown = [f"{ending} {count:,}" for ending, count in order[:SHOWN_ENDINGS]]
    shown += ["others"] if len(order) > SHOWN_ENDINGS else []
    return f"{plural(sum(passed_over.values()), 'file')} ({', '.join(shown)})"


def warn_passed_over(place: object, passed_over: Mapping[str, int]) -> None:
    """Log one line about the files in `place` that are not read, if there are any."""
    if passed_over:
        logger.warning(
            "%s: passed over %s; to use them, convert pictures to JPEG or PNG, and unpack archives",
            place, passed_over_text(passed_over),
        )  # fmt: skip


def unread_lines(unreadable: int, passed_over: Mapping[str, int]) -> list[str]:
    """Return a line about images that could not be decoded, and one about other pictures."""
    lines = [f"skipped {plural(unreadable, 'image')} that could not be decoded"]
    return lines[: unreadable > 0] + (
        [f"passed over {passed_over_text(passed_over)}"] if passed_over else []
    )
