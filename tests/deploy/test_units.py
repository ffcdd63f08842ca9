"""The systemd units: the server's options exist, and the commands of their comments work."""

from __future__ import annotations

import configparser
import re
import subprocess
from pathlib import Path

import click
import pytest

from resdeploy.cli.serve import serve
from tests.deploy.image import ROOT

UNITS = [ROOT / "deploy/resdeploy.service", ROOT / "deploy/jetson/resdeploy.service"]
# Stand-ins for programs that need root, systemd, or a network.
STANDINS = {
    "sudo": 'exec "$@"',
    "chown": 'test -e "$3"',
    "systemctl": 'echo "$@"',
    "curl": 'echo "$2"',
    "python3": 'mkdir -p "$3/bin" && ln -s /bin/echo "$3/bin/pip"',
}


@pytest.mark.parametrize("unit", UNITS, ids=["server", "jetson"])
def test_unit_serves_all_networks_with_a_token(unit: Path) -> None:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    service = parser["Service"]
    program, command, *arguments = service["ExecStart"].split()
    assert (program, command) == ("/opt/resdeploy/bin/resdeploy", serve.name)
    options = serve.make_context("serve", arguments, parent=click.Context(serve)).params
    assert (options["host"], str(options["token_file"])) == (
        "0.0.0.0", "${CREDENTIALS_DIRECTORY}/token",
    )  # fmt: skip
    assert service["LoadCredential"] == "token:/etc/resdeploy/token"
    assert (service["DynamicUser"], service["ProtectSystem"]) == ("yes", "strict")


@pytest.mark.parametrize("unit", UNITS, ids=["server", "jetson"])
def test_commands_of_the_comments_work(unit: Path, tmp_path: Path) -> None:
    comments, _, _ = unit.read_text().partition("[Unit]")
    commands = "".join(f"{line[4:]}\n" for line in comments.splitlines() if line[:4] == "#   ")
    for name, text in STANDINS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    for bundle in ("r34.bundle", "new.bundle"):  # unreadable for others, as with umask 077
        (tmp_path / bundle).mkdir(mode=0o700)
        (tmp_path / bundle / "manifest.json").write_text(bundle)
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    script = re.sub(r"(?<![\w.])/(?=opt/|srv/|etc/)", f"{tmp_path}/", commands)
    done = subprocess.run(
        ["sh", "-euc", script], cwd=tmp_path, env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "enable --now resdeploy" in done.stdout
    if unit == UNITS[0]:
        token = (tmp_path / "etc/resdeploy/token").read_text().strip()
        assert f"Authorization: Bearer {token}" in done.stdout
        assert len(bytes.fromhex(token)) == 32
        assert (tmp_path / "etc/systemd/system/resdeploy.service").read_text() == unit.read_text()
        served = tmp_path / "srv/resdeploy/model.bundle"
        assert (served / "manifest.json").read_text() == "new.bundle"
        assert served.stat().st_mode & 0o777 == 0o755
