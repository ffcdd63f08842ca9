"""Skipped images are counted by reason, and the first ones are named."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from resdeploy.errors import ImageError
from resdeploy.images.decode import read_rgb
from resdeploy.images.skipped import NAMED, SkippedImages, reason_of


def test_the_first_images_of_each_reason_are_named(caplog: pytest.LogCaptureFixture) -> None:
    skipped = SkippedImages()
    with caplog.at_level(logging.WARNING, "resdeploy"):
        for number in range(10):
            skipped.add(f"{number}.png", f"is truncated ({number * 1000:,} bytes not processed)")
        skipped.add("x.png", "cannot be read: Permission denied")
        skipped.report()
    assert skipped.counts == {
        "is truncated (N bytes not processed)": 10,
        "cannot be read: Permission denied": 1,
    }
    assert caplog.messages == [
        *(
            f"skipping {n}.png: it is truncated ({n * 1000:,} bytes not processed)"
            for n in range(3)
        ),
        "skipping x.png: it cannot be read: Permission denied",
        "skipping 7 more images: each is truncated (N bytes not processed)",
    ]
    assert NAMED == 3


@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_reason_does_not_repeat_the_name(tmp_path: Path, as_bytes: bool) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"")
    with pytest.raises(ImageError) as caught:
        read_rgb(path.read_bytes() if as_bytes else path)
    expected = "cannot be decoded: it is empty" if as_bytes else "is empty"
    assert reason_of(caught.value, path) == expected
