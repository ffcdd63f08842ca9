"""Size, parts and memory of a picture file, read from its structure before a decoder sees it.

A reader counts at least the segments, chunks and scans that Pillow and its libraries would see.
Sources: ITU-T T.81, annex B (JPEG); PNG specification, section 5; RFC 9649 (WebP);
`_open` in Pillow's JpegImagePlugin.py; `next_marker` and `read_markers` in libjpeg's jdmarker.c.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from resdeploy.errors import ImageError

MAX_SIDE = 65_535  # of JPEG; decoders need memory per row, so a narrow picture would cost most
# Each part costs microseconds, so a file of empty parts would take minutes. PNG encoders write a
# chunk for each 4 to 64 KiB; JPEG segments of metadata hold up to 64 KiB.
FREE_PARTS, BYTES_PER_PART = 1000, 1024
# Some encoders align segments to blocks of 4 or 32 KiB. Pillow reads filling bytes between segments
# one at a time, at 0.3 us each, and libjpeg those of a scan again with each block of 64 KiB.
FILLING_PER_PART = 64
MAX_SCANS = 32  # of a JPEG file; each is a pass over all pixels, and encoders write at most 16
FREE_EXIF = 4  # segments of EXIF data, of 64 KiB each; Pillow joins and parses all of them
FREE_RUN_BYTES = 1 << 20  # Pillow decodes the runs of BMP in Python, a million per second
WEBP_BYTES = 12  # per pixel: the two canvases of libwebp's decoder, and Pillow's copy of one

# JPEG markers with a length, and the end. A decoder searches the next marker byte by byte; the
# others have no length, or end the decoding.
_MARKER = re.compile(b"\xff([\xc0-\xc7\xc9-\xcf\xd9-\xef\xfe])")
_TABLES, _PROGRESSIVE, _SCAN, _END = (0xC4, 0xCC), (0xC2, 0xC6, 0xCA, 0xCE), 0xDA, 0xD9


@dataclass(slots=True)
class PictureStructure:
    """The structure of a picture file; sizes are 0 if it is damaged."""

    most_parts: int
    width: int = 0
    height: int = 0
    parts: int = 0
    """Number of segments or chunks, and of bytes that cost as much as one."""
    scans: int = 0
    bytes_per_pixel: int = 0
    """Memory that the decoder needs besides the decoded picture."""
    ends: bool = True
    """False for a JPEG file without an end marker after the start of its picture."""


def read_structure(data: bytes, kind: str | None) -> PictureStructure:
    """Return what the structure of a picture file of a format in `FORMATS` says.

    Damage is not an error here, because the decoder describes it.

    Raises:
        ImageError: Decoding would cost more time than the pixels of the picture need.
    """
    found = PictureStructure(most_parts=FREE_PARTS + len(data) // BYTES_PER_PART)
    try:
        if kind in _READERS:
            _READERS[kind](data, found)
    except (struct.error, IndexError):  # it is cut off
        pass
    problem = None
    if found.parts > found.most_parts:
        problem = f"has more than {found.most_parts:,} segments, chunks, runs or filling bytes"
    elif found.scans > MAX_SCANS:
        problem = f"has more than {MAX_SCANS} scans"
    elif max(found.width, found.height) > MAX_SIDE:
        problem = f"has {found.width:,} x {found.height:,} pixels; a side may have {MAX_SIDE:,}"
    if problem:
        raise ImageError(problem, "save it again as an ordinary JPEG or PNG file")
    return found


def _read_jpeg(data: bytes, found: PictureStructure) -> None:
    position, first_scan, components, exif, filling, sampled, match = 2, 0, 0, 0, 0, 0.0, None
    while found.parts <= found.most_parts and found.scans <= MAX_SCANS:
        match = _MARKER.search(data, position)
        if not first_scan:
            filling += (match.start() if match else len(data)) - position
        if match is None:
            break
        marker, position = match[1][0], match.end()
        found.parts += 1
        if marker == _END:
            if first_scan:
                break
            continue
        (length,) = struct.unpack_from(">H", data, position)
        if marker == 0xE1 and data.startswith(b"Exif", position + 2):
            exif += 1
            found.parts += length if exif > FREE_EXIF else 0
        if marker == _SCAN:
            found.scans += 1
            if not first_scan:
                first_scan = position
                if data[position + 2] < components:  # the other components follow
                    found.bytes_per_pixel = max(found.bytes_per_pixel, round(2 * sampled))
        elif 0xC0 <= marker <= 0xCF and marker not in _TABLES:
            found.height, found.width, components = struct.unpack_from(">HHB", data, position + 3)
            factors = [
                (byte >> 4) * (byte & 15)
                for byte in data[position + 9 : position + 8 + 3 * components : 3]
            ]
            sampled = sum(factors) / max(factors, default=1) if all(factors) else 4
            if marker in _PROGRESSIVE:  # the decoder keeps all coefficients, two bytes each
                found.bytes_per_pixel = round(2 * sampled)
        position += length
    if first_scan:
        filling += 2 * data.count(b"\xff\xff", first_scan, position if match else len(data))
    found.parts += filling // FILLING_PER_PART
    found.ends = not first_scan or data.find(b"\xff\xd9", first_scan) >= 0


def _read_png(data: bytes, found: PictureStructure) -> None:
    found.width, found.height = struct.unpack_from(">II", data, 16)
    _count_chunks(data, found, ">I4x", 8, 12)


def _read_webp(data: bytes, found: PictureStructure) -> None:
    found.bytes_per_pixel = WEBP_BYTES
    kind = data[12:16]
    if kind == b"VP8X":
        found.width = 1 + int.from_bytes(data[24:27], "little")
        found.height = 1 + int.from_bytes(data[27:30], "little")
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        found.width, found.height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        sides = struct.unpack_from("<HH", data, 26)
        found.width, found.height = (side & 0x3FFF for side in sides)
    _count_chunks(data, found, "<4xI", 12, 8)


def _count_chunks(
    data: bytes, found: PictureStructure, layout: str, first: int, frame: int
) -> None:
    """Count chunks, each of which has `frame` bytes more than the length in its `layout`."""
    while first < len(data) and found.parts <= found.most_parts:
        found.parts += 1
        (length,) = struct.unpack_from(layout, data, first)
        first += frame + length


def _read_bmp(data: bytes, found: PictureStructure) -> None:
    (size,) = struct.unpack_from("<I", data, 14)
    if size == 12:  # of OS/2
        found.width, found.height = struct.unpack_from("<HH", data, 18)
        return
    found.width, height, _, _, compression = struct.unpack_from("<iiHHI", data, 18)
    found.width, found.height = abs(found.width), abs(height)
    if compression in (1, 2):  # runs
        found.parts = max(0, len(data) - FREE_RUN_BYTES)


_READERS = {"JPEG": _read_jpeg, "PNG": _read_png, "WEBP": _read_webp, "BMP": _read_bmp}
