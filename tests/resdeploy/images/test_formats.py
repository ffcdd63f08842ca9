"""Files are recognised as pictures by ending and first bytes; those not read are counted."""

from __future__ import annotations

import logging

import pytest
from PIL import Image

from resdeploy.images.formats import (
    FORMATS,
    HEAD_BYTES,
    PictureFilter,
    format_of,
    passed_over_text,
    warn_passed_over,
)
from tests.samples import encoded

JPEG = encoded(Image.new("RGB", (4, 4)), "JPEG")
GIF = encoded(Image.new("RGB", (4, 4)), "GIF")


@pytest.mark.parametrize("name", [*FORMATS, "GIF", "TIFF"])
def test_formats_that_pillow_writes_are_recognised(name: str) -> None:
    assert format_of(encoded(Image.new("RGB", (4, 4)), name)[:HEAD_BYTES]) == name


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x24ftypheic\0\0\0\0", "HEIF"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"MM\0*\0\0\0\x08", "TIFF"),
        (b"BMW\nAudi\nMercedes, a list of labels", None),
        (b"RIFF\x24\0\0\0WAVEfmt ", None),
        (b"", None),
    ],
)
def test_other_formats_and_texts(head: bytes, name: str | None) -> None:
    assert format_of(head) == name


@pytest.mark.parametrize(
    ("name", "head", "accepted", "counted"),
    [
        ("a.jpg", b"", True, {}),
        ("a.JFIF", b"", True, {}),
        ("a.Jpe", b"", True, {}),
        ("a", JPEG, True, {}),
        ("a", None, True, {}),  # decoding reports that it cannot be read
        ("README", b"Pictures of cats", False, {}),
        ("a", GIF, False, {"no ending": 1}),
        ("a.TIF", b"", False, {".tif": 1}),
        ("a.heic", b"", False, {".heic": 1}),
        ("a.thm", JPEG, False, {".thm": 1}),
        ("a.jpg?size=200\x1b[31m", JPEG, False, {"other endings": 1}),
        ("a.\udcff", JPEG, False, {"other endings": 1}),
        ("labels.txt", b"cat", False, {}),
        ("Thumbs.db", b"\xd0\xcf\x11\xe0", False, {}),
        ("labels.json.gz", b"\x1f\x8b", False, {}),
        ("pictures.tar.gz", b"\x1f\x8b", False, {".tar": 1}),
        ("pictures.zip", b"PK", False, {".zip": 1}),
    ],
)
def test_files_are_read_counted_or_no_pictures(
    name: str, head: bytes | None, accepted: bool, counted: dict[str, int]
) -> None:
    pictures = PictureFilter()
    assert pictures.accepts(name, lambda: head) is accepted
    assert pictures.passed_over == counted


def test_only_the_first_file_of_an_ending_without_pictures_is_opened() -> None:
    pictures = PictureFilter()
    pictures.accepts("a.xml", lambda: b"<?xml")
    assert not pictures.accepts("b.xml", lambda: pytest.fail("it was opened"))
    assert not pictures.accepts("README", lambda: b"text")
    assert pictures.accepts("0001", lambda: JPEG)


def test_the_counts_are_one_line_with_the_most_frequent_endings_first(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert passed_over_text({".gif": 1}) == "1 file (.gif 1)"
    assert passed_over_text({".gif": 1, ".tif": 1200}) == "1,201 files (.tif 1,200, .gif 1)"
    many = {f".{number}": 1 for number in range(9)}
    assert passed_over_text(many).endswith(".5 1, others)")
    with caplog.at_level(logging.WARNING, "resdeploy"):
        warn_passed_over("data", {})
        warn_passed_over("data", {".gif": 1})
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("data: passed over 1 file (.gif 1); ")
