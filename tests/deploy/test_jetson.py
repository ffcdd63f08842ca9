"""The files for a Jetson: the scripts' errors, the list of wheels, and the systemd service."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy import image
from tests.deploy.jetson_folder import SCRIPT, load_script

FOLDER = SCRIPT.parent
PYTHONS = pytest.mark.parametrize(("jetpack", "python"), [("6", "3.10"), ("7", "3.12")])


def run_install(folder: Path, *arguments: str, identity: int = 0) -> str:
    """Run the script of a board whose only programs are those of a shell; return its errors."""
    shutil.copy(FOLDER / "install", folder)
    (folder / "target").write_text("jetpack=6\npython=python3.10\n")
    (folder / "dirname").symlink_to(str(shutil.which("dirname")))
    (folder / "id").write_text(f"#!/bin/sh\necho {identity}\n")
    (folder / "id").chmod(0o755)
    command = ["/bin/sh", str(folder / "install"), *arguments]
    done = subprocess.run(
        command, env={"PATH": str(folder)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    return done.stderr


def test_install_names_the_jetpack_whose_python_is_missing(tmp_path: Path) -> None:
    errors = run_install(tmp_path, str(tmp_path / "root"))
    assert errors.startswith(
        "error: python3.10 is not installed\nhint: this folder is for JetPack 6;"
    )
    assert not (tmp_path / "root").exists()


def test_install_without_rights_asks_for_root(tmp_path: Path) -> None:
    assert "error: only root may install into /opt\nhint: sudo sh " in run_install(
        tmp_path, identity=1000
    )


@pytest.mark.parametrize("case", ["no bundle", "an old folder", "no pip", "no network"])
def test_pack_ends_with_one_line_and_a_hint(tmp_path: Path, case: str) -> None:
    bundle, output = tmp_path / "r34.bundle", tmp_path / "jetson"
    if case != "no bundle":
        bundle.mkdir()
        (bundle / "manifest.json").touch()
    if case == "an old folder":
        output.mkdir()
    # Without site-packages, there is no pip; a proxy that does not exist is no network.
    options = ["-I", "-S"] if case == "no pip" else []
    done = subprocess.run(
        [sys.executable, *options, str(SCRIPT), "6", str(bundle), "-o", str(output)],
        env={"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null", "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()[-2:]
    assert (error[:7], hint[:6]) == ("error: ", "hint: ")
    assert case == "no network" or len(done.stderr.splitlines()) == 2
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"r34.bundle", "jetson"}


def test_wheel_is_built_from_the_sources_of_the_containers(tmp_path: Path) -> None:
    load_script().copy_sources(tmp_path)
    copied = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert copied >= set(image.context_files())


@PYTHONS
def test_list_of_wheels_is_complete_and_has_the_pinned_versions(jetpack: str, python: str) -> None:
    """If this fails, write the list again: its first lines show how."""
    marked: Mapping[str, Any] = {
        "python_version": python, "python_full_version": f"{python}.12", "extra": "",
        "platform_machine": "aarch64", "sys_platform": "linux", "platform_system": "Linux",
    }  # fmt: skip
    lines = (FOLDER / f"requirements-jetpack{jetpack}.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    constraints = (image.ROOT / "constraints.txt").read_text().splitlines()
    for limit in (Requirement(line) for line in constraints if not line.startswith("#")):
        name = canonicalize_name(limit.name)
        if name in pins and (limit.marker is None or limit.marker.evaluate(dict(marked))):
            assert limit.specifier.contains(pins[name]), limit
    project = tomllib.loads((image.ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["jetson"], *extras["cpu"], *extras["serve"]]
    seen: set[str] = set()
    while needed:
        found = Requirement(needed.pop())
        name = canonicalize_name(found.name)
        if name in seen or not (found.marker is None or found.marker.evaluate(dict(marked))):
            continue
        seen.add(name)
        assert found.specifier.contains(pins[name]), found
        with suppress(PackageNotFoundError):  # what another version needs is not known here
            if version(name) == pins[name]:
                needed += [line for line in requires(name) or () if "extra ==" not in line]
    assert load_script().PYTHONS[jetpack] == python
