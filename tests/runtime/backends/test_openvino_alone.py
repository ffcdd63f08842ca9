"""What needs OpenVINO, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.alone import SHARED

pytest.importorskip("openvino")
TESTS = Path(__file__).parents[2]
FILES = (TESTS / "runtime/backends/test_openvino.py", TESTS / "contract/test_backend.py")


@pytest.mark.skipif(not SHARED, reason="here these tests run in the process that they are in")
def test_it_holds_in_a_process_of_its_own() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *FILES],
        env=environment, cwd=TESTS.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
