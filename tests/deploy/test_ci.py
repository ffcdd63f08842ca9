"""The workflow for GitHub: its commands and options exist, in an order that works."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest

from resdeploy.cli import main

WORKFLOW = Path(__file__).resolve().parents[2] / "deploy" / "ci" / "resdeploy.yml"


@pytest.fixture(scope="module")
def steps() -> list[dict[str, Any]]:
    yaml: Any = pytest.importorskip("yaml")
    (job,) = yaml.safe_load(WORKFLOW.read_text())["jobs"].values()
    found: list[dict[str, Any]] = job["steps"]
    return found


def calls(steps: list[dict[str, Any]]) -> list[list[str]]:
    """Return every call of resdeploy, split as a shell would."""
    text = "\n".join(step.get("run", "") for step in steps).replace("\\\n", " ")
    found = re.findall(r"^\s*resdeploy (.+?)(?: \|\| .*)?$", text, re.MULTILINE)
    return [shlex.split(line.split(" > ")[0]) for line in found]


def test_every_call_parses_on_the_command_line(steps: list[dict[str, Any]]) -> None:
    found = calls(steps)
    assert [call[0] for call in found] == ["export", "verify", "compare", "report", "report"]
    for name, *arguments in found:
        # The workflow takes these numbers from variables.
        values = [{"$MAX_DROP": "0.2", "$MAX_SLOWDOWN": "5"}.get(a, a) for a in arguments]
        command = main.commands[name]
        command.make_context(name, values, parent=click.Context(main))


@pytest.mark.parametrize("name", ["Export", "Verify", "Compare"])
@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1), (3, 0)])
def test_undecided_warns_and_worse_fails(
    steps: list[dict[str, Any]], tmp_path: Path, name: str, code: int, expected: int
) -> None:
    (script,) = [step["run"] for step in steps if step.get("name") == name]
    program = tmp_path / "resdeploy"
    program.write_text(f"#!/bin/sh\nexit {code}\n")
    program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", "-e", "-o", "pipefail", "-c", script]  # as the runner of GitHub starts it
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == expected
    assert ("::warning::" in done.stdout) == (code == 3)


def test_pytorch_comes_from_the_index_of_the_repository(steps: list[dict[str, Any]]) -> None:
    """The build of this index has a local version such as 2.13.0+cpu, which pip prefers."""
    assert "PIP_EXTRA_INDEX_URL: ${{ vars.TORCH_INDEX }}\n" in WORKFLOW.read_text()
    (script,) = [step["run"] for step in steps if step.get("name") == "Install"]
    command = ["bash", "-e", "-o", "pipefail", "-c", f"pip() {{ :; }}; {script}"]
    for index, warns in (("", True), ("https://host/cpu", False)):
        environment = {"PATH": os.environ["PATH"], "PIP_EXTRA_INDEX_URL": index}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert ("::warning::" in done.stdout) == warns


def test_untrusted_text_reaches_no_shell(steps: list[dict[str, Any]]) -> None:
    for step in steps:
        assert "${{" not in step.get("run", "")
