"""The outputs of the tutorial: each block has one, and a failing command ends the generator."""

from __future__ import annotations

import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks.tutorial import BLOCK, COLUMNS, DATE, TUTORIAL, fill_outputs, wrap_messages


def test_each_command_of_the_tutorial_has_its_output() -> None:
    text = TUTORIAL.read_text(encoding="utf-8")
    blocks = BLOCK.findall(text)
    assert len(blocks) == text.count("<!-- run -->") >= 5
    for command, output in blocks:
        assert output.strip(), f"{command}: run python -m benchmarks.tutorial"


def test_the_contents_name_each_step() -> None:
    text = TUTORIAL.read_text(encoding="utf-8")
    contents = re.findall(r"^(\d+\. )\[(.+)\]\(#", text, re.MULTILINE)
    assert ["".join(step) for step in contents] == re.findall("^## (.+)$", text, re.MULTILINE)


def test_the_output_of_a_command_is_written_below_it(tmp_path: Path) -> None:
    page = "a\n\n<!-- run -->\n```\n$ resdeploy --version\nold\n```\n\nb\n"
    filled = fill_outputs(page, tmp_path)
    assert filled.startswith("a\n\n<!-- run -->\n```\n$ resdeploy --version\nresdeploy, version ")
    assert filled.endswith("\n```\n\nb\n")
    assert fill_outputs(filled, tmp_path) == filled


def test_the_page_has_the_date_of_its_outputs(tmp_path: Path) -> None:
    today = datetime.now(UTC).date().isoformat()
    filled = fill_outputs("The outputs were written on 2020-01-31, here.", tmp_path)
    assert filled == f"The outputs were written on {today}, here."
    assert DATE.search(TUTORIAL.read_text(encoding="utf-8"))


def test_a_command_that_fails_ends_the_generator(tmp_path: Path) -> None:
    page = "<!-- run -->\n```\n$ resdeploy verify no.bundle\n```\n"
    with pytest.raises(subprocess.CalledProcessError):
        fill_outputs(page, tmp_path)


def test_long_messages_are_wrapped_and_tables_are_not() -> None:
    row, message = "fp32.onnx  " + "1.0  " * 40, "the option --int8-shortcuts " * 10
    lines = wrap_messages(f"{row}\n\n{message}").split("\n")
    assert lines[:2] == [row, ""]
    assert " ".join(lines[2:]) == message.strip()
    assert COLUMNS - 30 < max(map(len, lines[2:])) <= COLUMNS
    assert not any(line.endswith("-") for line in lines)
