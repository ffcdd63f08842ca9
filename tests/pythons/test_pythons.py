"""The wheel on the Pythons of JetPack, with its oldest and newest dependencies."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from resdeploy.bundle.bundle import Bundle
from tests.pythons.environments import DEPENDENCIES, PYTHONS, ROOT, folder, skip_reason

# All tests of the runtime and the core, without those of the command line and of the reports, which
# need torch, jinja2 and a browser.
ALL = (
    "tests/runtime", "tests/contract", "tests/resdeploy",
    "--ignore=tests/resdeploy/cli", "--ignore=tests/resdeploy/report",
)  # fmt: skip
# The tests that depend most on Python and the packages: engines, arrays, images.
SOME = (
    "tests/contract",
    "tests/runtime/backends/onnxruntime/test_cpu.py",
    "tests/runtime/test_model.py",
    "tests/runtime/verification/test_verify.py",
    "tests/resdeploy/images/test_decode.py",
    "tests/resdeploy/images/test_preprocessing.py",
)
# The tests for each Python and set of packages, and the number of them that must pass.
TESTS = {
    ("3.10", "oldest"): (ALL, 800),
    ("3.12", "newest"): (ALL, 800),
    ("3.10", "newest"): (SOME, 100),
    ("3.12", "oldest"): (SOME, 100),
}


def run(command: Sequence[str | Path], where: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=where, env={**os.environ, **environment}, capture_output=True, text=True,
        check=False, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("dependencies", DEPENDENCIES)
@pytest.mark.parametrize("version", PYTHONS)
def test_wheel_installs_and_passes_the_tests(
    version: str, dependencies: str, wheel: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    if reason := skip_reason(version, dependencies):
        pytest.skip(f"Python {version} with the {dependencies} packages is not tested: {reason}")
    environment = tmp_path / "venv"
    # A new venv that imports the packages of the cached one, so that the cached one stays clean.
    cache = folder(version, dependencies)
    run([cache / "bin/python", "-m", "venv", environment], tmp_path)
    (packages,) = environment.glob("lib/python*/site-packages")
    (cached,) = cache.glob("lib/python*/site-packages")
    (packages / "cached.pth").write_text(f"{cached}\n")
    python = environment / "bin/python"
    run([python, "-m", "pip", "install", "--quiet", "--no-index", wheel], tmp_path)
    run([python, "-m", "pip", "check"], tmp_path)
    # Without the sources beside them, the tests import the wheel.
    shutil.copytree(ROOT / "tests", tmp_path / "run/tests")
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "run")
    where = run([python, "-c", "import resdeploy; print(resdeploy.__file__)"], tmp_path / "run")
    assert where.startswith(str(environment))
    tests, minimum = TESTS[version, dependencies]
    summary = run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], tmp_path / "run",
        RESDEPLOY_TINY_BUNDLE=str(tiny_bundle.path),
    ).splitlines()[-1]  # fmt: skip
    verified = run([environment / "bin/resdeploy", "verify", tiny_bundle.path], tmp_path)
    assert "bit-exact" in verified
    passed = re.search(r"(\d+) passed", summary)
    assert passed is not None, summary
    assert int(passed[1]) > minimum, summary


def test_oldest_packages_are_the_lower_bounds() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for pin in DEPENDENCIES["oldest"]:
        assert f'"{pin.replace("==", ">=")}"' in text
