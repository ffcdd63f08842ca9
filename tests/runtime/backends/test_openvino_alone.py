"""The tests that need OpenVINO, run in a separate process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from resdeploy.bundle.bundle import Bundle
from tests.alone import SHARED

pytest.importorskip("openvino")
TESTS = Path(__file__).parents[2]
FILES = (TESTS / "runtime/backends/test_openvino.py", TESTS / "contract/test_backend.py")


@pytest.mark.skipif(not SHARED, reason="without xdist these tests run in this process")
def test_openvino_tests_pass_in_another_process(tiny_bundle: Bundle) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment["RESDEPLOY_TINY_BUNDLE"] = str(tiny_bundle.path)  # another export takes 15 s
    # Of the contract, other backends are tested in the workers.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "openvino"]
    done = subprocess.run(
        [*command, *FILES],
        env=environment, cwd=TESTS.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
