"""The scripts for a Jetson: their errors, and the list of wheels."""

from __future__ import annotations

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

from tests.deploy.jetson_folder import SCRIPT, load_script

FOLDER, ROOT = SCRIPT.parent, SCRIPT.parents[2]


def run(*command: object, **environment: str) -> list[str]:
    """Run a script that fails, and return the lines of its errors."""
    done = subprocess.run(
        list(map(str, command)), env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [(["root"], "error: python3.10-of-jetpack is not installed"),
     ([], "error: only root may install into /opt")],
    ids=["wrong JetPack", "no root"],
)  # fmt: skip
def test_install_ends_with_one_error_and_a_hint(
    tmp_path: Path, arguments: list[str], error: str
) -> None:
    (tmp_path / "install").write_text((FOLDER / "install").read_text())
    (tmp_path / "target").write_text("jetpack=6\npython=python3.10-of-jetpack\n")
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    lines = run("sh", tmp_path / "install", *(tmp_path / name for name in arguments), PATH=path)
    assert (lines[0], lines[1][:6], len(lines)) == (error, "hint: ", 2)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("case", ["no bundle", "an old folder", "no pip", "no network"])
def test_pack_ends_with_one_error_and_a_hint(tmp_path: Path, case: str) -> None:
    bundle, output = tmp_path / "r34.bundle", tmp_path / "jetson"
    if case != "no bundle":
        bundle.mkdir()
        (bundle / "manifest.json").touch()
    if case == "an old folder":
        output.mkdir()
    options = ["-I", "-S"] if case == "no pip" else []  # without site-packages
    *lines, error, hint = run(
        sys.executable, *options, SCRIPT, "6", bundle, "-o", output,
        PIP_NO_INDEX="1", PIP_CONFIG_FILE="/dev/null",
    )  # fmt: skip
    assert (error[:7], hint[:6]) == ("error: ", "hint: ")
    assert case == "no network" or not lines  # pip prints its reason
    assert {path.name for path in tmp_path.iterdir()} <= {"r34.bundle", "jetson"}


@pytest.mark.parametrize(("jetpack", "python"), [("6", "3.10"), ("7", "3.12")])
def test_list_of_wheels_is_complete_and_has_the_pinned_versions(jetpack: str, python: str) -> None:
    """If this fails, write the list again: its first lines show how."""
    assert load_script().PYTHONS[jetpack] == python
    marked: Mapping[str, Any] = {
        "python_version": python, "python_full_version": f"{python}.12", "extra": "",
        "platform_machine": "aarch64", "sys_platform": "linux", "platform_system": "Linux",
    }  # fmt: skip

    def wanted(lines: list[str]) -> list[tuple[str, Requirement]]:
        found = [Requirement(line) for line in lines if not line.startswith("#")]
        return [
            (canonicalize_name(each.name), each)
            for each in found
            if each.marker is None or each.marker.evaluate(dict(marked))
        ]

    lines = (FOLDER / f"requirements-jetpack{jetpack}.txt").read_text().splitlines()
    pins = {name: str(pin.specifier)[2:] for name, pin in wanted(lines)}
    for name, limit in wanted((ROOT / "constraints.txt").read_text().splitlines()):
        assert name not in pins or limit.specifier.contains(pins[name]), limit
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = wanted(project["dependencies"] + extras["jetson"] + extras["cpu"] + extras["serve"])
    seen: set[str] = set()
    while needed:
        name, requirement = needed.pop()
        assert requirement.specifier.contains(pins[name]), requirement
        with suppress(PackageNotFoundError):  # what another version needs is not known here
            if name not in seen and version(name) == pins[name]:
                needed += wanted([line for line in requires(name) or () if "extra ==" not in line])
        seen.add(name)
