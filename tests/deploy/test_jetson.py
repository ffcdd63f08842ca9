"""The files for a Jetson: the installer's shell script and the systemd service."""

from __future__ import annotations

import configparser
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

from resdeploy.cli.serve import serve

FOLDER = Path(__file__).resolve().parents[2] / "deploy/jetson"


@pytest.mark.parametrize(("jetpack", "python"), [("6", "3.10"), ("7", "3.12")])
def test_installer_needs_the_python_of_the_board(tmp_path: Path, jetpack: str, python: str) -> None:
    names = runpy.run_path(str(FOLDER / "wheelhouse"))
    script = tmp_path / "install"
    script.write_text(names["INSTALL"].format(python=python, jetpack=jetpack, extras="jetson"))
    subprocess.run(["sh", "-n", script], check=True)
    # That Python is not on the PATH, so one line says for which JetPack the wheels are.
    (tmp_path / "dirname").symlink_to(str(shutil.which("dirname")))
    done = subprocess.run(
        ["/bin/sh", script, tmp_path / "target"], env={"PATH": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"python{python} of JetPack {jetpack}, which is not installed" in done.stderr
    assert names["PYTHONS"][jetpack] == python
    assert not (tmp_path / "target").exists()


def test_service_starts_an_existing_command() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(FOLDER / "resdeploy.service")
    program, command, bundle = unit["Service"]["ExecStart"].split()
    assert (program, command) == ("/opt/resdeploy/bin/resdeploy", serve.name)
    assert bundle.endswith(".bundle")
    assert unit["Service"]["DynamicUser"] == "yes"
    assert unit["Service"]["DevicePolicy"] == "closed"
