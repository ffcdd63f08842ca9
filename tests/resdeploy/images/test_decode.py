"""Untrusted pictures decode in every colour mode, upright, and within the limits."""

from __future__ import annotations

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
    image.putpalette([0, 0, 0, 255, 0, 0])
    assert pixel(encoded(image, transparency=0)) == (255, 255, 255)


def test_alpha_is_composited_over_white() -> None:
    assert pixel(encoded(Image.new("RGBA", (3, 3), (200, 0, 0, 0)))) == (255, 255, 255)
    assert pixel(encoded(Image.new("RGBA", (3, 3), (200, 0, 0, 255)))) == (200, 0, 0)
    half = pixel(encoded(Image.new("RGBA", (3, 3), (0, 0, 0, 128))))
    assert half[0] == pytest.approx(127, abs=1)  # 255 * (1 - 128 / 255)


def test_grey_with_alpha() -> None:
    assert pixel(encoded(Image.new("LA", (3, 3), (10, 0)))) == (255, 255, 255)


def test_cmyk_jpeg() -> None:
    decoded = pixel(encoded(red("CMYK"), "JPEG", quality=95))
    assert np.abs(np.array(decoded) - RED).max() <= JPEG_STEP


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (256, 1), (32768, 128), (65535, 255)])
def test_sixteen_bit_grey_is_scaled_not_clipped(value: int, expected: int) -> None:
    image = Image.fromarray(np.full((3, 3), value, dtype=np.uint16))
    assert pixel(encoded(image)) == (expected,) * 3


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


def test_rejects_other_formats() -> None:
    with pytest.raises(ImageError):
        read_rgb(encoded(red(), "TIFF"))


def test_rejects_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        read_rgb(tmp_path / "nothing.png")
    with pytest.raises(ImageError, match="directory"):
        read_rgb(tmp_path)


def test_rejects_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "MAX_FILE_BYTES", 100)
    (tmp_path / "a.png").write_bytes(bytes(101))
    with pytest.raises(ImageError, match="larger than"):
        read_rgb(tmp_path / "a.png")


def png_claiming(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes whose header claims many pixels: a decompression bomb."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

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
