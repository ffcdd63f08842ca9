"""No command opens a connection that its user did not name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from resdeploy.bundle.bundle import Bundle

if shutil.which("strace") is None:
    pytest.skip("strace is not installed", allow_module_level=True)

# Runs commands in one process, because the start of each costs seconds.
DRIVER = """
import sys
from click.testing import CliRunner
from resdeploy.cli import main
for line in sys.stdin.read().splitlines():
    result = CliRunner().invoke(main, line.split("\\t"))
    print(result.exit_code, line, result.output if result.exit_code == 2 else "")
import {package}
"""
CONNECTIONS = re.compile(r"AF_INET6?\b")


def connections(code: str, folder: Path, commands: Sequence[Sequence[object]] = ()) -> list[str]:
    """Return the calls of a Python process, and of its children, that may reach other machines.

    Where the kernel allows it, the process runs without any network.
    """
    isolated = ["unshare", "--map-root-user", "--net"]
    if subprocess.run([*isolated, "true"], capture_output=True, check=False).returncode != 0:
        isolated = []
    trace = folder / "trace"
    run = subprocess.run(
        [*isolated, "strace", "-f", "--seccomp-bpf", "-e", "trace=%network", "-o", trace,
         sys.executable, "-c", code],
        input="\n".join("\t".join(map(str, command)) for command in commands),
        cwd=folder,
        env={**os.environ, "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "ptrace" in run.stderr:
        pytest.skip("this machine does not allow strace")
    assert run.returncode == 0, run.stderr
    statuses = [line.split()[0] for line in run.stdout.splitlines()]
    assert statuses == ["0"] * len(commands), run.stdout
    return [line for line in trace.read_text().splitlines() if CONNECTIONS.search(line)]


def test_the_trace_shows_connections(tmp_path: Path) -> None:
    code = "import socket; socket.socket(type=socket.SOCK_DGRAM).connect(('192.0.2.1', 53))"
    code = f"try:\n {code}\nexcept OSError: pass"
    assert any("192.0.2.1" in line for line in connections(code, tmp_path))


def test_no_command_opens_a_connection(
    tiny_bundle: Bundle, tiny_checkpoint: Path, image_data: Path, tmp_path: Path
) -> None:
    picture = next(path for path in sorted(image_data.rglob("*")) if path.is_file())
    bundle = tiny_bundle.path
    table_format = "parquet" if find_spec("pyarrow") else "csv"
    commands = [
        ("inspect", tiny_checkpoint),
        ("export", tiny_checkpoint, "-o", "new.bundle", "--image-size", 32),
        ("verify", bundle),
        ("predict", bundle, picture),
        ("score", bundle, image_data / "val", "-o", "scored", "--format", table_format),
        ("explain", bundle),
        ("report", bundle),
        ("doctor", bundle),
    ]
    assert connections(DRIVER.format(package="openvino"), tmp_path, commands) == []
    left = {path.name for path in tmp_path.iterdir()}
    # No identifier in HOME.
    assert left <= {"trace", "new.bundle", "report.html", "cache", "scored"}
