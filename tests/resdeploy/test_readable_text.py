"""Tests of text that every terminal, page and file can show."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdeploy.readable_text import readable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat", "cat"),
        ("Größe 猫 \u200d", "Größe 猫 \u200d"),
        (os.fsdecode("照片".encode("gbk")), r"\xd5\xd5Ƭ"),
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("a\nb\x9bc\u2028", r"a\x0ab\x9bc\u2028"),
        ("abc\u202egnp", r"abc\u202egnp"),
    ],
)
def test_only_unprintable_characters_become_escapes(text: str, expected: str) -> None:
    assert readable(text) == expected


def test_characters_can_be_kept() -> None:
    assert readable("a\nb\x1b", keep="\n") == "a\nb\\x1b"


@given(st.binary())
def test_every_file_name_can_be_encoded(name: bytes) -> None:
    text = readable(os.fsdecode(name))
    assert readable(text) == text
    assert "\x1b" not in text.encode().decode()
