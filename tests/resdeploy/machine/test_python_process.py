"""Processes that run a module of Python, and the folders in which they look for modules."""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from resdeploy.benchmark_process.worker_process import Contender
from resdeploy.bundle.bundle import Bundle
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.machine.python_process import python_command
from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.runtime.serving.decoder_pool import Decoder
from resdeploy.runtime.serving.loading_process import LoadingResult, check_loading
from tests.samples import encoded

CHILD = """
import sys
from resdeploy.benchmark_process.worker_loop import run_worker
run_worker(lambda: (lambda: None, {"arguments": sys.argv[1:], "name": __name__}))
"""


@pytest.fixture
def current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with fatal modules the current one, which `python -m` would search first."""
    folder = tmp_path / "current"
    folder.mkdir()
    for name in ("sitecustomize", "runpy", "json", "numpy", "PIL", "pickle", "torch", "yaml"):
        (folder / f"{name}.py").write_text("raise SystemExit('a module of the current folder')")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", ["", str(folder), ".", *sys.path])
    return folder


async def decode() -> None:
    decoder = Decoder(1, max_pixels=10_000, max_wait=1.0)
    picture = encoded(Image.new("RGB", (8, 8)), "JPEG")
    await decoder.decode([picture], Preprocessing.standard(8), math.inf)
    decoder.close()


@pytest.mark.usefixtures("current")
def test_no_process_imports_modules_of_the_current_folder(
    tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(decode())
    loading = check_loading(tiny_bundle.path, ServeConfig(), tiny_bundle.digest)
    assert asyncio.run(loading) == LoadingResult()
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    contender = Contender.start("child", "child", ["a b", ""], threads=1)
    contender.stop()
    assert contender.facts == {"arguments": ["a b", ""], "name": "__main__"}


def test_a_current_folder_that_is_gone_is_not_searched(
    current: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in current.iterdir():
        module.unlink()
    current.rmdir()
    monkeypatch.setattr(sys, "path", [*sys.path, "/missing"])
    command = python_command("this", "x")
    assert "The Zen" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert os.path.realpath("/proc/self/cwd").endswith("(deleted)")
