"""What a picture costs is known from its structure, before a decoder sees it."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from resdeploy.errors import ImageError
from resdeploy.images.decode import DecodingLimits, read_rgb
from resdeploy.images.formats import HEAD_BYTES, format_of
from resdeploy.images.structure import PictureStructure, read_structure
from tests.samples import encoded

MANY = 3000  # more parts than a small file may have
FILLING = 70_000 * b"\xff"  # more than a small file may have; 64 KiB are allowed


def structure(data: bytes) -> PictureStructure:
    return read_structure(data, format_of(data[:HEAD_BYTES]))


def flat(mode: str = "RGB", size: tuple[int, int] = (40, 24)) -> Image.Image:
    return Image.new(mode, size)


def chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, between: bytes = b"") -> bytes:
    """Return a grey PNG file of zeros."""
    rows = zlib.compress(bytes((width + 1) * height), 1)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + between + chunk(b"IDAT", rows) + chunk(b"IEND")


JPEG, WEBP = encoded(flat(), "JPEG"), encoded(flat(), "WEBP")
PROGRESSIVE = encoded(flat(), "JPEG", progressive=True)
LAST_SCAN = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]


def run_length_bmp(size: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, 9, 9, 1, 8, 1, size, 0, 0, 0, 0) + bytes(1024)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + len(header)) + header + bytes(size)


SAMPLES: dict[str, tuple[bytes, int]] = {  # with the memory of their decoders
    "JPEG": (JPEG, 0),
    "JPEG with reduced colour": (encoded(flat(), "JPEG", progressive=True, subsampling=2), 3),
    "progressive JPEG": (encoded(flat(), "JPEG", progressive=True, subsampling=0), 6),
    "progressive grey JPEG": (encoded(flat("L"), "JPEG", progressive=True), 2),
    "JPEG of four inks": (encoded(flat("CMYK"), "JPEG"), 0),
    "PNG": (encoded(flat(), "PNG"), 0),
    "BMP": (encoded(flat(), "BMP"), 0),
    "BMP of OS/2": (
        b"BM" + struct.pack("<IHHIIHHHH", 0, 0, 0, 26, 12, 40, 24, 1, 24) + bytes(40 * 24 * 3), 0,
    ),
    "lossy WebP": (WEBP, 12),
    "lossless WebP": (encoded(flat(), "WEBP", lossless=True), 12),
    "WebP with alpha": (encoded(flat("RGBA"), "WEBP"), 12),
    "animated WebP": (
        encoded(flat(), "WEBP", save_all=True, append_images=[Image.new("RGB", (40, 24), "red")]),
        12,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
def test_an_ordinary_file(name: str) -> None:
    data, memory = SAMPLES[name]
    found = structure(data)
    assert (found.width, found.height) == (40, 24)
    assert found.bytes_per_pixel == memory
    assert found.ends
    assert found.scans <= 10
    if "alpha" not in name:
        assert read_rgb(data).size == (40, 24)


ATTACKS = {
    "scans": (PROGRESSIVE[:-2] + 40 * LAST_SCAN + b"\xff\xd9", "32 scans"),
    "scans after another marker": (JPEG[:-2] + b"\xff\xd0\xff\xff" + 40 * LAST_SCAN, "32 scans"),
    "fill bytes": (JPEG[:2] + FILLING + JPEG[2:], "segments"),
    "bytes between segments": (JPEG[:20] + 70_000 * b"x" + JPEG[20:], "segments"),
    "bytes after the end": (b"\xff\xd8\xff\xd9" + FILLING + JPEG[2:], "segments"),
    "fill bytes in a scan": (JPEG[:-2] + FILLING + b"\xd9", "segments"),
    "EXIF": (JPEG[:2] + 5 * (b"\xff\xe1\xff\xffExif\0\0" + bytes(65527)) + JPEG[2:], "filling"),
    "empty segments": (JPEG[:2] + MANY * b"\xff\xfe\0\2" + JPEG[2:], "segments"),
    "segments that Pillow does not skip": (
        JPEG[:2] + b"\xff\xf0\x20\0" + 80_000 * b"\0" + JPEG[2:], "segments",
    ),
    "empty chunks": (png(9, 9, MANY * chunk(b"tEXt")), "chunks"),
    "empty WebP chunks": (WEBP + MANY * b"XMP \0\0\0\0", "chunks"),
    "a narrow PNG": (png(1, 70_000), "70,000"),
    "runs": (run_length_bmp(2 << 20), "runs"),
}  # fmt: skip


@pytest.mark.parametrize("place", [2, JPEG.index(b"\xff\xda"), len(JPEG) - 2])
def test_segments_may_be_aligned_to_blocks(place: int) -> None:
    aligned = JPEG[:place] + (32 << 10) * b"\xff" + JPEG[place:]
    assert read_rgb(aligned).tobytes() == read_rgb(JPEG).tobytes()


@pytest.mark.parametrize("name", ATTACKS)
def test_a_file_that_costs_more_than_its_pixels_is_refused(name: str) -> None:
    data, reason = ATTACKS[name]
    with pytest.raises(ImageError, match=reason) as caught:
        read_rgb(data)
    assert "save it again" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("data", "size"),
    [(encoded(flat("RGBA", (300, 200)), "WEBP", lossless=True), 20), (png(300, 200), 8),
     (encoded(flat("RGB", (300, 200)), "JPEG", progressive=True, subsampling=0), 10)],
    ids=["WebP", "PNG", "JPEG"],
)  # fmt: skip
def test_the_memory_is_estimated_before_decoding(data: bytes, size: int) -> None:
    limits = DecodingLimits(memory=300 * 200 * size - 1)
    with pytest.raises(ImageError, match=r"needs \d MiB to be decoded"):
        read_rgb(data, limits=limits)
    if size == 10:  # the coefficients stay, but the picture is 64 times smaller
        assert read_rgb(data, lambda width, height: 8.0, limits).size == (38, 25)


@pytest.mark.parametrize("name", SAMPLES)
def test_nothing_is_decoded_before_the_picture_is_admitted(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pixels: int, memory: int) -> None:
        raise MemoryError

    def load(image: ImageFile.ImageFile) -> None:
        raise AssertionError

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(MemoryError):
        read_rgb(SAMPLES[name][0], lambda width, height: 2.0, DecodingLimits(admit=refuse))


def test_a_header_that_the_decoder_reads_differently_is_refused() -> None:
    frame = JPEG.index(b"\xff\xc0")
    other = bytearray(JPEG[frame : frame + 19])
    other[5:9] = struct.pack(">HH", 8, 8)
    extended = encoded(flat("RGBA"), "WEBP")
    for data in (JPEG[:frame] + other + JPEG[frame:], extended[:24] + b"\1" + extended[25:]):
        with pytest.raises(ImageError, match="cannot be decoded"):
            read_rgb(bytes(data))


@given(st.sampled_from(sorted(SAMPLES)), st.integers(12, 900), st.binary(max_size=8))
def test_damage_is_left_to_the_decoder(name: str, position: int, value: bytes) -> None:
    data = SAMPLES[name][0]
    for damaged in (data[:position], data[:position] + value + data[position + len(value) :]):
        result: Any = None
        try:
            result = structure(damaged)
        except ImageError as error:
            assert error.hint
        assert result is None or result.parts <= result.most_parts
