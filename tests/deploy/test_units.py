"""The systemd units: the server's options exist, and the commands of their comments work."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import click
import pytest

from resdeploy.cli.serve import serve

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
every_unit = pytest.mark.parametrize(
    "folder", [DEPLOY, DEPLOY / "jetson"], ids=["server", "jetson"]
)
# Stand-ins for programs that need root, systemd, or a network.
STANDINS = {
    "sudo": 'exec "$@"',
    "chown": 'test -e "$3"',
    "systemctl": 'echo "$@"',
    "curl": 'echo "$2"',
    "python3": 'mkdir -p "$3/bin" && ln -s /bin/echo "$3/bin/pip"',
}


@every_unit
def test_unit_serves_all_networks_with_a_token(folder: Path) -> None:
    lines = (folder / "resdeploy.service").read_text().splitlines()
    (start,) = [line for line in lines if line.startswith("ExecStart=/opt/resdeploy/bin/resdeploy")]
    _, command, *arguments = start.split()
    options = serve.make_context("serve", arguments, parent=click.Context(serve)).params
    assert (command, options["host"]) == (serve.name, "0.0.0.0")
    assert str(options["token_file"]) == "${CREDENTIALS_DIRECTORY}/token"
    assert {"LoadCredential=token:/etc/resdeploy/token", "DynamicUser=yes"} < set(lines)


@every_unit
def test_commands_of_the_comments_work(folder: Path, tmp_path: Path) -> None:
    comments, _, _ = (folder / "resdeploy.service").read_text().partition("[Unit]")
    commands = "".join(f"{line[4:]}\n" for line in comments.splitlines() if line[:4] == "#   ")
    for name, text in STANDINS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    for bundle in ("r34.bundle", "new.bundle"):
        (tmp_path / bundle).mkdir(mode=0o700)  # unreadable for the service, as with umask 077
        (tmp_path / bundle / "manifest.json").write_text(bundle)
    (tmp_path / "deploy").symlink_to(DEPLOY)
    script = re.sub(r"(?<![\w.])/(?=opt/|srv/|etc/)", f"{tmp_path}/", commands)
    done = subprocess.run(
        ["sh", "-euc", script], cwd=tmp_path, env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "enable --now resdeploy" in done.stdout
    if folder == DEPLOY:  # the files for a Jetson are copied by a script
        token = (tmp_path / "etc/resdeploy/token").read_text().strip()
        assert f"Authorization: Bearer {token}" in done.stdout
        assert (tmp_path / "etc/systemd/system/resdeploy.service").is_file()
        served = tmp_path / "srv/resdeploy/model.bundle"
        assert (served / "manifest.json").read_text() == "new.bundle"
        assert served.stat().st_mode & 0o777 == 0o755
