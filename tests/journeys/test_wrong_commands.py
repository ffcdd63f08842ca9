"""Tests of the answers to wrong commands: each names the cause and a remedy, in one line each."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from resdeploy.bundle.bundle import Bundle
from tests.journeys import wrong_commands
from tests.journeys.wrong_commands import COMMANDS, PAGE, Answer

# A hint has a line of its own, but follows the cause of an error that does not end the command.
REMEDY = "^hint: .|^Try '|^error: .*; [a-z]"


@pytest.fixture(scope="module")
def answers(
    tiny_checkpoint: Path, tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> list[Answer]:
    folder = tmp_path_factory.mktemp("wrong")
    return wrong_commands.run_all(folder, tiny_checkpoint, tiny_bundle.path)


@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=COMMANDS)
def test_a_wrong_command_is_answered_with_its_cause_and_a_remedy(
    answers: list[Answer], number: int
) -> None:
    answer = answers[number]
    assert answer.exit in (1, 2)
    assert re.search("^[Ee]rror: .{10}", answer.output, re.MULTILINE)
    assert re.search(REMEDY, answer.output, re.MULTILINE)


def test_the_page_of_wrong_commands_is_current(answers: list[Answer]) -> None:
    text = wrong_commands.page(answers)
    if os.environ.get("WRITE_PAGE"):
        PAGE.write_text(text)
    assert PAGE.read_text() == text, "write it again as wrong_commands.py says"
