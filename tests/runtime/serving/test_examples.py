"""The curl commands of the documentation, run as they are written."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from resdeploy.bundle.bundle import Bundle
from tests.serving_process import PATIENCE, ServerProcess

DOCUMENT = Path(__file__).parents[3] / "docs" / "serving.md"
EXAMPLES = [
    line.strip() for line in DOCUMENT.read_text("utf-8").splitlines() if line.startswith("    curl")
]
pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture(scope="module")
def r34(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("examples") / "r34.bundle"
    shutil.copytree(tiny_bundle.path, folder)  # a link would resolve to the original name
    with ServerProcess(folder, "--threads", 1) as server:
        yield server.until_ready()


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_curl_example(example: str, r34: ServerProcess) -> None:
    for name in ("cat.jpg", "dog.jpg"):
        Image.new("RGB", (60, 40), "green").save(name)
    command = shlex.split(example.replace("localhost:8000", f"localhost:{r34.port}"))
    done = subprocess.run(
        [*command, "--silent", "--show-error", "--fail-with-body"],
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout
    if "classify" in example:
        assert '"label":' in done.stdout


def test_the_documentation_has_examples() -> None:
    assert len(EXAMPLES) >= 7
