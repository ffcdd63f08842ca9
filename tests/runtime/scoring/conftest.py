"""Fixtures of scorings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from resdeploy.runtime.backends import registry
from tests.fakes import colour_engine
from tests.samples import write_images


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make an engine that classifies the test pictures by their colour the only one."""
    monkeypatch.setattr(registry, "ENGINES", (colour_engine(),))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with 8 pictures in each of blue, green and red, none of the bundle's."""
    write_images(tmp_path / "photos", 8, seed=2)
    return tmp_path / "photos"


@pytest.fixture
def store() -> Iterator[str]:
    """Return the URL of an empty store in this process."""
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    yield "memory://bucket"
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
