"""The sdist, and the wheel on each Python, with its oldest and newest dependencies."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import pytest
import tomllib
from packaging.metadata import Metadata

from resdeploy.bundle.bundle import Bundle
from tests.pythons.environments import DEPENDENCIES, ENVIRONMENTS, ROOT, folder, skip_reason

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
# The tests for each Python and set of packages, and the number of them that must pass. The wheel is
# only installed and used on Pythons without an entry: their tests are those of the others.
TESTS = {
    ("3.10", "oldest"): (ALL, 800),  # the furthest from this environment
    ("3.10", "newest"): (SOME, 100),
    ("3.12", "oldest"): (SOME, 100),
    ("3.12", "newest"): (SOME, 100),
}


def run(command: Sequence[str | Path], where: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=where, env={**os.environ, "PYTHONPATH": "", **environment},
        capture_output=True, text=True, check=False, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("version", "dependencies"), ENVIRONMENTS)
def test_wheel_installs_and_passes_the_tests(
    version: str, dependencies: str, wheel: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    if reason := skip_reason(version, dependencies):
        pytest.skip(f"Python {version} with the {dependencies} packages is not tested: {reason}")
    environment = tmp_path / "venv"
    # A new venv that imports the packages of the cached one, pip too, so that the cached one stays
    # clean.
    cache = folder(version, dependencies)
    run([cache / "bin/python", "-m", "venv", "--without-pip", environment], tmp_path)
    (packages,) = environment.glob("lib/python*/site-packages")
    (cached,) = cache.glob("lib/python*/site-packages")
    (packages / "cached.pth").write_text(f"{cached}\n")
    python = environment / "bin/python"
    run([python, "-m", "pip", "install", "--quiet", "--no-index", wheel], tmp_path)
    run([python, "-m", "pip", "check"], tmp_path)
    # The wheel holds the compiled protocol, so that no compiler of protobuf was installed.
    run(
        [python, "-c", "from importlib.util import find_spec as f; assert not f('grpc_tools')"],
        tmp_path,
    )
    assert "bit-exact" in run([environment / "bin/resdeploy", "verify", tiny_bundle.path], tmp_path)
    if (version, dependencies) not in TESTS:
        return
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
    passed = re.search(r"(\d+) passed", summary)
    assert passed is not None, summary
    assert int(passed[1]) > minimum, summary


def test_oldest_packages_are_the_lower_bounds() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for pin in DEPENDENCIES["oldest"]:
        assert f'"{pin.replace("==", ">=")}"' in text


def test_sdist_and_wheel_hold_every_file_of_the_package(wheel: Path) -> None:
    """The stage folders, which the repository links into the package, are files in both."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = ["*.py", *project["tool"]["setuptools"]["package-data"]["*"]]
    compiled = "resdeploy/runtime/serving/grpc/open_inference.binpb"
    folders = [ROOT / "resdeploy", *(path for path in (ROOT / "resdeploy").iterdir())]
    expected = {compiled} | {
        str(file.relative_to(ROOT))
        for folder in folders
        for file in folder.rglob("*")  # it does not follow the links
        if file.is_file() and any(fnmatch(file.name, pattern) for pattern in patterns)
    }
    with zipfile.ZipFile(wheel) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    assert {name for name in content if name.startswith("resdeploy/")} == expected
    (sdist,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(sdist) as packed:
        members = {member.name.partition("/")[2]: member for member in packed.getmembers()}
        for name in expected - {compiled}:
            source = packed.extractfile(members[name])
            assert source is not None
            assert source.read() == content[name] == (ROOT / name).read_bytes()
    assert {"LICENSE", "CHANGELOG.md", "requirements.lock", "setup.py"} <= {*members}
    assert not any(name.startswith(("tests/", "train/")) for name in members)
    (about,) = [name for name in content if name.endswith(".dist-info/METADATA")]
    metadata = Metadata.from_email(content[about], validate=True)
    assert (metadata.author, metadata.license_expression) == (
        "resdeploy contributors",
        "Apache-2.0",
    )
    page = metadata.description or ""
    assert "resdeploy export" in page
    assert not re.search(r"\]\((?!https?:)", page), "a link to a file that the page does not have"
    for version, _ in ENVIRONMENTS:
        assert f"Programming Language :: Python :: {version}" in (metadata.classifiers or [])
    needed = {requirement.name for requirement in metadata.requires_dist or []}
    assert not needed & {"grpcio-tools", "pytest"}
