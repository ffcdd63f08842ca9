"""Tests of the variables of the environment that set options."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from resdeploy import __version__
from resdeploy.cli.main import NAMES, main
from resdeploy.cli.options.console import CommandResult, ReadableGroup, command, reject_options
from resdeploy.cli.options.variables import option_variable
from tests.resdeploy.cli.options.test_console import RESULT
from tests.results import read_document

OPTIONS = [
    (name, option)
    for name in NAMES
    for option in main.commands[name].params
    if isinstance(option, click.Option)
]


def valid_text(option: click.Option) -> str:
    """Return a value that an option accepts and that is not its default."""
    match option.type:
        case click.Choice(choices=choices):
            return str(choices[-1])
        case click.IntRange(min=int(low)):
            return str(low + 1 if option.default != low + 1 else low + 2)
        case click.FloatRange(min=float() | int() as low):
            return str(low + 0.5)
        case click.types.BoolParamType():
            return "no" if option.default is True else "yes"
    texts = {"--batch": "1,2,3", "--image-size": "32x48", "--mean": "0.5", "--std": "0.5"}
    texts["--within"] = "7%"
    return texts.get(option.opts[-1], "text")


def parse(name: str, given: list[str], **variables: str) -> dict[str, Any]:
    found, arguments = main.commands[name], [*given]
    for needed in [p for p in found.params if p.required and p.envvar not in variables]:
        option = [max(needed.opts, key=len)] if isinstance(needed, click.Option) else []
        arguments = [*option, "a", *arguments]
    parent = click.Context(main, **main.context_settings)
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in variables.items():
            patch.setenv(variable, value)
        return found.make_context(name, arguments, parent=parent).params


@pytest.mark.parametrize("name", NAMES)
def test_each_option_has_a_variable_of_its_name_with_the_same_value(name: str) -> None:
    for option in [option for owner, option in OPTIONS if owner == name]:
        check_variable(name, option)


def check_variable(name: str, option: click.Option) -> None:
    flag, text = max(option.opts, key=len), valid_text(option)
    variable = f"RESDEPLOY_{name}_{flag[2:]}".replace("-", "_").upper()
    expected = [flag, text]
    if option.is_flag:
        expected = [flag if text == "yes" else option.secondary_opts[0]]
    if option.multiple:
        text, expected = f"{text} {text}", expected * 2
    assert parse(name, [], **{variable: text}) == parse(name, expected) != parse(name, [])
    # The command line has priority, and an empty variable counts as not set.
    assert parse(name, expected, **{variable: "neither"}) == parse(name, expected)
    if not option.required:
        assert parse(name, [], **{variable: ""}) == parse(name, [])


def test_no_variable_is_that_of_another_option() -> None:
    own = {"RESDEPLOY_TOKEN", "RESDEPLOY_KEY_PASSWORD"}
    names = [str(option.envvar) for _, option in OPTIONS]
    assert len(own | {*names}) == len(own) + len(names)
    assert not any(a != b and a.startswith(option_variable(b, "")) for a in own for b in NAMES)
    # `--version` and `--help` have none: a product's variables often have such names.
    answer = CliRunner().invoke(main, ["doctor", "-h"], env={"RESDEPLOY_VERSION": "x"})
    assert answer.exit_code == 0, answer.output
    assert "RESDEPLOY_DOCTOR_JSON for --json" in answer.output


def invoke(arguments: list[str], **variables: str) -> Result:
    @click.option("--port", type=int)
    @click.option("--force", is_flag=True)
    def use(port: int | None, force: bool) -> CommandResult:
        if port == 0:
            reject_options(("force",), "0 writes nothing")
        return CommandResult(RESULT, f"{port} {force}")

    group = ReadableGroup(commands={"use": command(use)})
    return CliRunner().invoke(group, arguments, prog_name="x", env=variables)


def test_a_wrong_value_is_reported_with_its_source() -> None:
    answer = invoke(["use"], RESDEPLOY_USE_PORT="tcp://10.0.0.1:80")
    assert answer.exit_code == 2
    assert "Invalid value for RESDEPLOY_USE_PORT: 'tcp://" in answer.stderr
    answer = invoke(["use", "--port", "a"], RESDEPLOY_USE_PORT="1")
    assert "Invalid value for '--port': 'a'" in answer.stderr
    assert "'maybe' is not" in invoke(["use"], RESDEPLOY_USE_FORCE="maybe").stderr
    answer = invoke(["use", "--port", "0"], RESDEPLOY_USE_FORCE="1")
    assert "0 writes nothing: unset RESDEPLOY_USE_FORCE" in answer.stderr
    answer = invoke(["use", "--port", "a"], RESDEPLOY_USE_JSON="1")
    assert read_document(answer.stdout)["exit"] == 2


def test_variables_in_use_and_unknown_ones_are_logged() -> None:
    answer = invoke(["use"], RESDEPLOY_USE_PORT="1", RESDEPLOY_USE_PROT="2", RESDEPLOY_OTHER="3")
    assert answer.stdout == "1 False\n"
    assert answer.stderr.splitlines() == [
        "options set by variables: RESDEPLOY_USE_PORT",
        "warning: no option of use belongs to RESDEPLOY_USE_PROT",
    ]


@pytest.mark.parametrize("flag", ["-v", "--verbose", "--debug"])
def test_verbose_logs_begin_with_the_versions(flag: str) -> None:
    answer = invoke(["use", flag])
    assert answer.stdout == "None False\n"
    assert answer.stderr.startswith(f"resdeploy {__version__}, Python 3.")
    assert invoke(["use"]).stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_of_a_shell_is_printed(shell: str) -> None:
    runner = CliRunner(env={"_RESDEPLOY_COMPLETE": f"{shell}_source"})
    script = runner.invoke(main, prog_name="resdeploy").output
    assert "_RESDEPLOY_COMPLETE" in script
    words = {
        "COMP_WORDS": "resdeploy verify --prec",
        "COMP_CWORD": "2" if shell != "fish" else "--prec",
    }
    runner = CliRunner(env={"_RESDEPLOY_COMPLETE": f"{shell}_complete", **words})
    assert "--precision" in runner.invoke(main, prog_name="resdeploy").output
