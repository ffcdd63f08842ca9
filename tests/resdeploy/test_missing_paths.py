"""Tests of the hints for paths that do not exist."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from resdeploy.missing_paths import MAX_ENTRIES, missing_path_hint


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("photos.bundle", "dogs.bundle", ".hidden.bundle", "CIFAR/train", "a\n\x1b.b"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "photos.txt").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("photos.bundl", "did you mean photos.bundle?"),
        ("Dog.bundle", "did you mean dogs.bundle?"),
        ("./photo", "did you mean photos.bundle?"),
        ("cifr/train", "did you mean CIFAR/train?"),
        ("CIFAR/trian", "did you mean CIFAR/train?"),
        ("a\n.b", r"did you mean a\x0a\x1b.b?"),
        ("nothere.bundle", r"h; the x there: CIFAR, a\x0a\x1b.b, dogs.bundle, photos.bundle"),
        ("CIFAR/test/a", "h"),
        ("x" * 100_000, r"h; the x there: CIFAR, a\x0a\x1b.b, dogs.bundle, photos.bundle"),
        ("/nowhere/at/all", "h"),
        ("a\0b/c", "h"),
        ("photos.txt/a", "h"),
    ],
)
def test_names_the_similar_path_or_those_that_exist(folder: Path, path: str, expected: str) -> None:
    assert missing_path_hint(Path(path), Path.is_dir, "h", "x") == expected


def test_looks_at_a_few_hundred_entries(folder: Path) -> None:
    files = folder / "CIFAR" / "train"
    for number in range(MAX_ENTRIES + 50):
        (files / f"{number}").touch()
    fits = Mock(return_value=False)
    assert missing_path_hint(files / "x", fits, "h", "x") == "h"
    assert fits.call_count == MAX_ENTRIES
