"""The workflow for GitHub: its commands and options exist, in an order that works."""

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


def test_inconclusive_warns_and_worse_fails(steps: list[dict[str, Any]]) -> None:
    (compare,) = [step["run"] for step in steps if step.get("name") == "Compare"]
    assert re.search(r'"\$status" -eq 3 .*\n.*::warning::', compare)
    assert 'exit "$status"' in compare


def test_untrusted_text_reaches_no_shell(steps: list[dict[str, Any]]) -> None:
    for step in steps:
        assert "${{" not in step.get("run", "")
