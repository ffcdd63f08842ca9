"""The workflow for GitHub: it calls commands and options that there are, in an order that works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest

from resdeploy.cli.main import main

WORKFLOW = Path(__file__).resolve().parents[2] / "deploy" / "ci" / "resdeploy.yml"


@pytest.fixture(scope="module")
def steps() -> list[dict[str, Any]]:
    yaml: Any = pytest.importorskip("yaml")
    (job,) = yaml.safe_load(WORKFLOW.read_text())["jobs"].values()
    found: list[dict[str, Any]] = job["steps"]
    return found


def calls(steps: list[dict[str, Any]]) -> list[list[str]]:
    """Every call of resdeploy, as the shell would split it."""
    text = "\n".join(step.get("run", "") for step in steps).replace("\\\n", " ")
    found = re.findall(r"^\s*resdeploy (.+?)(?: \|\| .*)?$", text, re.MULTILINE)
    return [shlex.split(line.split(" > ")[0]) for line in found]


def test_every_call_is_one_that_the_command_line_takes(steps: list[dict[str, Any]]) -> None:
    made = calls(steps)
    assert [call[0] for call in made] == ["export", "verify", "compare", "report", "report"]
    for name, *arguments in made:
        # Numbers come from variables in the workflow.
        values = [{"$MAX_DROP": "0.2", "$MAX_SLOWDOWN": "5"}.get(a, a) for a in arguments]
        command = main.commands[name]
        command.make_context(name, values, parent=click.Context(main))


def test_undecided_warns_and_worse_fails(steps: list[dict[str, Any]]) -> None:
    (compare,) = [step["run"] for step in steps if step.get("name") == "Compare"]
    assert re.search(r'"\$status" -eq 3 .*\n.*::warning::', compare)
    assert 'exit "$status"' in compare


def test_what_a_stranger_wrote_reaches_no_shell(steps: list[dict[str, Any]]) -> None:
    for step in steps:
        assert "${{" not in step.get("run", "")
