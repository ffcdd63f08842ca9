"""Tests of the output of commands: results on stdout, errors and hints on stderr."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from resdeploy import progress
from resdeploy.bundle.manifest import ExportWarning
from resdeploy.cli.options.console import CommandResult, ExitCode, ReadableGroup, command
from resdeploy.errors import DataError, Interrupted
from resdeploy.json_documents import jsonable
from resdeploy.tables import table
from tests.results import read_document
from tests.serving_process import PATIENCE


class Colour(str, Enum):
    RED = "red"


@dataclass(frozen=True, slots=True)
class Document:
    path: Path
    colour: Colour
    parts: tuple[float, ...]
    schema: str = "resdeploy.test/1"


RESULT = Document(path=Path("a/b"), colour=Colour.RED, parts=(0.1, 2.0))


def run(function: Callable[[], CommandResult], *arguments: str) -> Result:
    return CliRunner().invoke(command(function), arguments)


def raising(error: BaseException) -> Result:
    def function() -> CommandResult:
        raise error

    return run(function)


def test_a_result_is_printed_as_text_or_as_json() -> None:
    def function() -> CommandResult:
        return CommandResult(RESULT, "a table")

    assert run(function).output == "a table\n"
    answer = run(function, "--json")
    assert json.loads(answer.stdout) == {
        "schema": "resdeploy.test/1", "path": "a/b", "colour": "red", "parts": [0.1, 2.0],
        "warnings": [],
    }  # fmt: skip


def test_the_document_holds_the_warnings_of_the_bundle_and_of_the_log() -> None:
    def function() -> CommandResult:
        logging.getLogger("resdeploy").warning("skipping %s", "a")
        return CommandResult(RESULT, "text", warnings=[ExportWarning(message="m", hint="h")])

    answer = run(function, "--json")
    assert [(w["message"], w["hint"]) for w in json.loads(answer.stdout)["warnings"]] == [
        ("m", "h"), ("skipping a", ""),
    ]  # fmt: skip
    assert answer.stderr == "warning: skipping a\n"
    assert run(function).stdout == "warning: m\n  hint: h\ntext\n"


def test_long_work_is_reported_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "START_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    written, write = threading.Event(), progress._write_line

    def record(text: str) -> None:
        write(text)
        written.set()

    monkeypatch.setattr(progress, "_write_line", record)

    def function() -> CommandResult:
        assert written.wait(PATIENCE)
        return CommandResult(RESULT, "")

    answer = run(function, "--json")
    assert json.loads(answer.stdout)["colour"] == "red"
    first, *_ = answer.stderr.splitlines()
    assert first == "function: working for 0 s"


def test_names_reach_the_terminal_without_control_characters() -> None:
    odd = "\x1b]52;c;cm0=\x07 \x9b2J " + os.fsdecode(b"\xd5")
    shown = r"\x1b]52;c;cm0=\x07 \x9b2J \xd5"

    def function() -> CommandResult:
        logging.getLogger("resdeploy").warning("skipping %s", odd)
        return CommandResult(replace(RESULT, path=Path(odd)), f"two\n{odd}")

    answer = run(function)
    assert (answer.stdout, answer.stderr) == (f"two\n{shown}\n", f"warning: skipping {shown}\n")
    assert json.loads(run(function, "--json").stdout)["path"] == odd
    assert (
        f"{shown} is missing\nhint: find {shown}"
        in raising(DataError(f"{odd} is missing", f"find {odd}")).stderr
    )


@pytest.mark.parametrize("code", list(ExitCode))
def test_exit_codes(code: ExitCode) -> None:
    assert run(lambda: CommandResult(RESULT, "", code)).exit_code == code


def test_an_error_is_one_line_and_a_hint() -> None:
    answer = raising(DataError("folder\n  is  empty", "fill it"))
    assert answer.exit_code == 1
    assert answer.stdout == ""
    assert answer.stderr == "error: folder is empty\nhint: fill it\n"


def test_with_json_a_failure_is_a_document_too() -> None:
    def function() -> CommandResult:
        logging.getLogger("resdeploy").warning("it is late")
        raise DataError("folder\n  is  empty", "fill it")

    for extra in ((), ("--debug",)):
        answer = run(function, "--json", *extra)
        assert answer.exit_code == 1
        assert read_document(answer.stdout) == {
            "schema": "resdeploy.error/1", "error": "folder is empty", "hint": "fill it", "exit": 1,
            "warnings": [{"message": "it is late", "hint": "", "artifacts": []}],
        }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["run", "--json", "--nmae"], "No such option", "see x run --help"),
        (["run", "--json", "\x1b[2J"], r"Got unexpected extra argument (\x1b[2J)", "x run"),
        (["--json"], "No such option", "see x --help"),
        (["fly", "--json"], "No such command 'fly'.", "see x --help"),
        (["use", "--json"], "give one", "see x use --help"),
        (["stop", "--json"], "interrupted", None),
    ],
)
def test_with_json_wrong_usage_is_a_document_too(
    arguments: list[str], error: str, hint: str | None
) -> None:
    def use() -> CommandResult:
        raise click.UsageError("give one")

    def stop() -> CommandResult:
        raise KeyboardInterrupt

    commands = {"run": command(lambda: CommandResult(RESULT, "")), "use": command(use)}
    group = ReadableGroup(commands=commands | {"stop": command(stop)})
    answer = CliRunner().invoke(group, arguments, prog_name="x")
    document = read_document(answer.stdout)
    assert document["error"].startswith(error)
    assert hint is None or hint in document["hint"]
    assert document["exit"] == answer.exit_code == (1 if error == "interrupted" else 2)
    without = CliRunner().invoke(group, [a for a in arguments if a != "--json"], prog_name="x")
    assert '"schema"' not in without.output
    if error == "interrupted":
        assert without.exit_code == 1
        told = "interrupted: results that were not complete have not been written"
        assert without.stderr == f"\n{told}; run the command again\n"
    assert '"schema"' not in CliRunner().invoke(group, ["run", "--", "--json"]).output


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        ([], ["Usage: x [OPTIONS] COMMAND [ARGS]...", "Commands:"]),
        (["use"], ["Usage: x use [OPTIONS] BUNDLE", "Error: Missing argument 'BUNDLE'."]),
    ],
)
def test_help_and_usage_keep_their_lines(arguments: list[str], lines: list[str]) -> None:
    @command
    @click.argument("bundle")
    def use(bundle: str) -> CommandResult:
        return CommandResult(RESULT, bundle)

    answer = CliRunner().invoke(ReadableGroup(commands={"use": use}), arguments, prog_name="x")
    assert answer.exit_code == 2
    assert set(lines) <= set(answer.stderr.splitlines())
    assert "\\x0a" not in answer.stderr


def test_an_interruption_that_was_explained_prints_nothing_more() -> None:
    def stop() -> CommandResult:
        raise Interrupted("terminated; saved", 143)

    group = ReadableGroup(commands={"stop": command(stop)})
    answer = CliRunner().invoke(group, ["stop"])
    assert (answer.exit_code, answer.output) == (143, "")
    document = read_document(CliRunner().invoke(group, ["stop", "--json"]).stdout)
    assert (document["error"], document["exit"]) == ("terminated; saved", 143)


def test_sigterm_ends_a_command_with_a_message_and_a_forked_process_without() -> None:
    def stop() -> CommandResult:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError

    group = ReadableGroup(commands={"stop": command(stop)})
    answer = CliRunner().invoke(group, ["stop"])
    told = "terminated: results that were not complete have not been written; run the command again"
    assert (answer.exit_code, answer.output) == (143, f"\n{told}\n")
    document = read_document(CliRunner().invoke(group, ["stop", "--json"]).stdout)
    assert (document["error"], document["exit"]) == (told, 143)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_warnings_are_shortened_if_a_page_has_them() -> None:
    doubt = ExportWarning(message=f"{30 * 'm'}: figures", hint="h")
    answer = run(lambda: CommandResult(RESULT, "text", warnings=[doubt], page=Path("p.html")))
    shown = f"warning: {30 * 'm'}\n  figures and remedies: p.html\ntext\n"
    assert answer.stdout == shown


def test_a_missing_package_names_its_extra() -> None:
    answer = raising(ModuleNotFoundError("No module named 'torch'", name="torch.nn"))
    assert "needs torch" in answer.stderr
    assert "[train]" in answer.stderr


def test_debug_keeps_the_traceback() -> None:
    def function() -> CommandResult:
        raise DataError("x")

    answer = run(function, "--debug")
    assert isinstance(answer.exception, DataError)


def test_an_unexpected_error_is_one_line_with_its_type() -> None:
    answer = raising(ZeroDivisionError("by zero"))
    assert answer.exit_code == 1
    assert answer.stderr.startswith("error: ZeroDivisionError: by zero\nhint:")
    assert "--debug" in answer.stderr


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (
            OSError(13, "Permission denied", "a"),
            "a cannot be used: Permission denied",
            "permissions",
        ),
        (OSError(24, "Too many open files"), "OSError: Too many open files", "ulimit -n"),
        (MemoryError(), "MemoryError: there is not enough memory", "smaller batch"),
        (
            ImportError("cannot import name 'x'", name="torch"),
            "torch does not load: ",
            "pip install",
        ),
    ],
)
def test_an_error_of_the_machine_is_not_called_a_bug(
    error: Exception, message: str, hint: str
) -> None:
    first, second = raising(error).stderr.splitlines()
    assert first.startswith(f"error: {message}")
    assert hint in second
    assert "--debug" not in second


def test_wrong_usage_exits_with_2() -> None:
    assert raising(click.UsageError("no")).exit_code == 2


def test_enums_and_paths_become_json_strings() -> None:
    value = {"a": (Colour.RED, Path("x")), 3: [RESULT]}
    assert json.loads(json.dumps(jsonable(value)))["3"][0]["colour"] == "red"


def test_columns_of_a_table_are_aligned() -> None:
    text = table(["name", "n"], [["a", "1"], ["longer", "10"]])
    assert text.splitlines() == ["name     n", "------  --", "a        1", "longer  10"]


@pytest.mark.parametrize(
    "error", [MemoryError(), SystemError("error return without exception set")]
)
def test_without_memory_for_the_output_there_are_two_lines(
    error: Exception, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(click, "echo", fail)
    group = ReadableGroup(commands={"run": command(lambda: CommandResult(RESULT, "text"))})
    with pytest.raises(SystemExit) as ended:
        group.main(["run", "--json"], prog_name="x")
    assert ended.value.code == ExitCode.FAILED
    output, errors = capfd.readouterr()
    assert read_document(output)["error"] == "there is not enough memory"
    assert errors.splitlines() == [
        "error: there is not enough memory",
        "hint: close other programs, and run it again",
    ]
    with pytest.raises(type(error)):
        group.main(["run", "--debug"], prog_name="x")
