"""Untrusted pictures decode in every colour mode, upright, and within the limits."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from resdeploy.errors import ImageError
from resdeploy.images import decode as decode_module
from resdeploy.images.decode import read_rgb
from tests.samples import encoded

RED = (200, 30, 40)
JPEG_STEP = 12  # JPEG rounds colours; flat areas stay within a few steps


def red(mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", (6, 4), RED).convert(mode)


def pixel(data: bytes) -> tuple[int, ...]:
    value = read_rgb(data).getpixel((1, 1))
    assert isinstance(value, tuple)
    return value


@pytest.mark.parametrize(
    ("format", "options"),
    [("PNG", {}), ("JPEG", {"quality": 95}), ("WEBP", {"lossless": True}), ("BMP", {})],
)
def test_formats(format: str, options: dict[str, object]) -> None:
    picture = read_rgb(encoded(red(), format, **options))
    assert (picture.mode, picture.size) == ("RGB", (6, 4))
    assert np.abs(np.array(picture).astype(int) - RED).max() <= JPEG_STEP


def test_grey_becomes_three_equal_channels() -> None:
    assert pixel(encoded(Image.new("L", (3, 3), 77))) == (77, 77, 77)


def test_one_bit_becomes_black_and_white() -> None:
    assert pixel(encoded(Image.new("1", (3, 3), 1))) == (255, 255, 255)


def test_palette() -> None:
    assert pixel(encoded(red().quantize(4))) == RED


def test_transparent_palette_becomes_white() -> None:
    image = Image.new("P", (3, 3), 0)
    image.putpixel((0, 0), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    decoded = read_rgb(encoded(image, transparency=0))
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]


def test_alpha_is_composited_over_white() -> None:
    image = Image.new("RGBA", (3, 3), (200, 0, 0, 0))
    image.putpixel((0, 0), (200, 0, 0, 255))
    decoded = read_rgb(encoded(image))
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(200, 0, 0), (255, 255, 255)]
    half = pixel(encoded(Image.new("RGBA", (3, 3), (0, 0, 0, 128))))
    assert half[0] == pytest.approx(127, abs=1)  # 255 * (1 - 128 / 255)


def test_grey_with_alpha() -> None:
    image = Image.new("LA", (3, 3), (10, 0))
    image.putpixel((0, 0), (10, 255))
    decoded = read_rgb(encoded(image))
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(10, 10, 10), (255, 255, 255)]


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGBA", (3, 3), (200, 0, 0, 0)),
        Image.new("LA", (3, 3), (10, 0)),
        Image.fromarray(
            np.array([[[255, 255, 255, 200], [9, 9, 9, 0]]], np.uint8)
        ),  # white on transparent
    ],
)
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_rejects_a_picture_that_is_white_because_of_its_transparency(
    image: Image.Image, format: str
) -> None:
    with pytest.raises(ImageError, match="transparent or white") as caught:
        read_rgb(encoded(image, format, **({"lossless": True} if format == "WEBP" else {})))
    assert "background" in str(caught.value.hint)


def test_opaque_white_and_black_pictures_are_decoded() -> None:
    assert pixel(encoded(Image.new("RGBA", (3, 3), (255, 255, 255, 255)))) == (255, 255, 255)
    assert pixel(encoded(Image.new("RGB", (3, 3)))) == (0, 0, 0)


def test_rejects_a_bmp_file_whose_fourth_byte_is_taken_for_alpha_but_unused() -> None:
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 2, 2, 1, 32, 3, 16, 0, 0, 0, 0) + masks + bytes(52)
    file = b"BM" + struct.pack("<IHHI", 14 + 108 + 16, 0, 0, 14 + 108) + header
    with pytest.raises(ImageError, match="transparent or white"):
        read_rgb(file + bytes([40, 30, 200, 0]) * 4)
    assert pixel(file + bytes([40, 30, 200, 255]) * 4) == (200, 30, 40)


def test_cmyk_jpeg() -> None:
    decoded = pixel(encoded(red("CMYK"), "JPEG", quality=95))
    assert np.abs(np.array(decoded) - RED).max() <= JPEG_STEP


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (256, 1), (32768, 128), (65535, 255)])
def test_sixteen_bit_grey_is_scaled_not_clipped(value: int, expected: int) -> None:
    values = np.full((3, 3), value, dtype=np.uint16)
    values[0, 0] = 65535
    assert pixel(encoded(Image.fromarray(values))) == (expected,) * 3


def png(values: np.ndarray, colour_type: int, *chunks: bytes) -> bytes:
    """Return a PNG of 16 bits, which Pillow cannot write in colour."""
    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"".join([
        b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *chunks,
        chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""),
    ])  # fmt: skip


def chunk(name: bytes, data: bytes) -> bytes:
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


RAMP = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
OPAQUE = np.full_like(RAMP, 65535)
SIXTEEN_BITS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # by PNG's colour type
    0: lambda grey: grey,
    2: lambda grey: np.stack([grey] * 3, axis=2),
    4: lambda grey: np.stack([grey, OPAQUE], axis=2),
    6: lambda grey: np.stack([grey] * 3 + [OPAQUE], axis=2),
}


@pytest.mark.parametrize("kind", SIXTEEN_BITS)
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_rejects_values_of_fewer_bits_in_16_bits(kind: int, bits: int) -> None:
    with pytest.raises(ImageError, match=f"only the lower {bits} of its 16 bits") as caught:
        read_rgb(png(SIXTEEN_BITS[kind](RAMP >> (16 - bits)), kind))
    assert "0 to 65535" in str(caught.value.hint)


@pytest.mark.parametrize("kind", SIXTEEN_BITS)
def test_16_bits_agree_with_opencv(kind: int) -> None:
    data = png(SIXTEEN_BITS[kind](RAMP), kind)
    decoded = np.array(read_rgb(data))
    np.testing.assert_array_equal(decoded[..., 0], RAMP >> 8)
    np.testing.assert_array_equal(decoded, opencv(data))


def opencv(data: bytes) -> np.ndarray:
    """Decode with an independent library: uint8 (H, W, 3)."""
    cv2 = pytest.importorskip("cv2")
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB))


@pytest.mark.parametrize(
    ("format", "modes", "options", "tolerance"),
    [
        ("PNG", "RGB L P 1", {}, 0),
        ("BMP", "RGB L P 1", {}, 0),
        ("WEBP", "RGB L", {"lossless": True}, 0),
        # Other builds of libjpeg and libwebp interpolate colours and round differently.
        ("WEBP", "RGB L", {"quality": 90}, 3),
        ("JPEG", "RGB L CMYK", {"quality": 95, "subsampling": 0}, 3),
        ("JPEG", "RGB L CMYK", {"progressive": True}, 3),
    ],
)
def test_formats_and_modes_agree_with_opencv(
    format: str, modes: str, options: dict[str, object], tolerance: int
) -> None:
    down, across = np.mgrid[:48, :64]
    colours = np.stack([across * 4, down * 5, 255 - across * 2], axis=2).astype(np.uint8)
    for mode in modes.split():
        data = encoded(Image.fromarray(colours).convert(mode), format, **options)
        difference = np.array(read_rgb(data)).astype(int) - opencv(data)
        assert np.abs(difference).max() <= tolerance, mode


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    upright = np.zeros((8, 16, 3), dtype=np.uint8)
    upright[:, :8] = RED  # the left half
    # The pixels that a camera stores for each orientation; EXIF 2.3, tag 274.
    store: Callable[[np.ndarray], np.ndarray] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    stored = Image.fromarray(np.ascontiguousarray(store(upright)))
    decoded = np.array(read_rgb(encoded(stored, "PNG", exif=exif.tobytes())))
    np.testing.assert_array_equal(decoded, upright)


def test_a_path_and_its_content_decode_alike(tmp_path: Path) -> None:
    data = encoded(red())
    path = tmp_path / "a.png"
    path.write_bytes(data)
    np.testing.assert_array_equal(np.array(read_rgb(path)), np.array(read_rgb(data)))


def test_rejects_a_truncated_jpeg_by_name(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "half.jpg"
    path.write_bytes(encoded(Image.fromarray(noise), "JPEG")[:-500])
    with pytest.raises(ImageError, match=r"half\.jpg cannot be decoded") as caught:
        read_rgb(path)
    assert caught.value.hint


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"not an image", b"\x89PNG\r\n\x1a\n", b"BM"])
def test_rejects_data_that_is_not_an_image(data: bytes) -> None:
    with pytest.raises(ImageError, match="cannot be decoded"):
        read_rgb(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded(red(), "TIFF"), "it is a TIFF file"),
        (encoded(red(), "GIF"), "it is a GIF file"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "it is a HEIF file"),  # a telephone's .jpg
        (b"", "it is empty"),
        (encoded(red(), "PNG")[:17], "it ends too early"),  # Pillow: Truncated File Read
        (b"<html>404</html>", "cannot identify image file"),
    ],
)
def test_rejects_other_formats_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=f"cannot be decoded: {reason}"):
        read_rgb(data)


def test_rejects_a_jpeg_whose_second_half_was_not_written() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    thumbnail = encoded(red(), "JPEG")  # has an end marker of its own
    exif = b"Exif\0\0II*\0\x08\0\0\0\0\0" + thumbnail
    data = encoded(Image.fromarray(noise), "JPEG", exif=exif)
    assert thumbnail in data
    with pytest.raises(ImageError, match="has no end marker"):
        read_rgb(data[: len(data) // 2] + bytes(len(data) // 2))
    for padding in (bytes(512), b"\xff\xda a film behind the picture" + bytes(512)):
        assert read_rgb(data + padding).size == (64, 64)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}), ("BMP", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}),
        ("WEBP", {"lossless": True}),
    ],
)  # fmt: skip
def test_a_cut_file_never_gives_other_pixels(format: str, options: dict[str, object]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), format, **options)
    whole = np.array(read_rgb(data))
    refused = 0
    for size in range(len(data)):
        try:
            np.testing.assert_array_equal(np.array(read_rgb(data[:size])), whole)
        except ImageError:
            refused += 1
    assert refused > 0.5 * len(data)


def test_text_metadata_above_the_limit_of_the_decoder_is_named() -> None:
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2 << 20)))
    with pytest.raises(ImageError, match="text metadata exceeds") as caught:
        read_rgb(png(RAMP, 0, text))
    assert "without metadata" in str(caught.value.hint)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(format: str) -> None:
    others = [Image.new("RGB", (6, 4), "black")]
    data = encoded(red(), format, save_all=True, append_images=others, lossless=True)
    assert pixel(data) == RED


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_a_pipe_or_device_is_not_opened(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png cannot be read: it is not a regular file"):
        read_rgb(tmp_path / "a.png")


def test_rejects_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        read_rgb(tmp_path / "nothing.png")
    with pytest.raises(ImageError, match="directory"):
        read_rgb(tmp_path)


def test_rejects_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "MAX_IMAGE_BYTES", 100)
    (tmp_path / "a.png").write_bytes(bytes(101))
    with pytest.raises(ImageError, match="larger than"):
        read_rgb(tmp_path / "a.png")


def png_claiming(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes whose header claims many pixels: a decompression bomb."""

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(10_001, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_rejects_a_decompression_bomb_before_decoding(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=r"pixels|cannot be decoded"):
        read_rgb(png_claiming(*size))


GOOD = {name: encoded(red(), name) for name in ("PNG", "JPEG", "BMP", "WEBP")}


@given(
    name=st.sampled_from(sorted(GOOD)),
    position=st.floats(0, 1, exclude_max=True),
    byte=st.integers(0, 255),
    cut=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_damaged_files_decode_or_raise_image_error(
    name: str, position: float, byte: int, cut: bool
) -> None:
    data = bytearray(GOOD[name])
    index = int(position * len(data))
    data[index] = byte
    try:
        picture = read_rgb(bytes(data[:index] if cut else data))
    except ImageError as error:
        assert "\n" not in str(error)
    else:
        assert picture.mode == "RGB"
