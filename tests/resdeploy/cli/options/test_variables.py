"""Tests of the variables that set options, of `--verbose`, and of the completion in a shell."""

from __future__ import annotations

import json
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from resdeploy import __version__
from resdeploy.cli import NAMES, main
from resdeploy.cli.options.console import CommandResult, ReadableGroup, command, reject_options
from tests.resdeploy.cli.options.test_console import RESULT

TEXTS = {
    "--batch": "1,2,3",
    "--image-size": "32x48",
    "--mean": "0.5",
    "--std": "2",
    "--within": "7%",
}


def valid_text(option: click.Option, flag: str) -> str:
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
    return TEXTS.get(flag, "text")


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
    for option in [p for p in main.commands[name].params if isinstance(p, click.Option)]:
        flag = max(option.opts, key=len)
        text, variable = valid_text(option, flag), f"RESDEPLOY_{name}{flag[1:]}".replace("-", "_")
        given = [flag, text]
        if option.is_flag:
            given = [flag if text == "yes" else option.secondary_opts[0]]
        if option.multiple:
            text, given = f"{text} {text}", given * 2
        variable = variable.upper()
        assert parse(name, [], **{variable: text}) == parse(name, given) != parse(name, [])
        assert parse(name, given, **{variable: "neither"}) == parse(name, given)
        assert option.required or parse(name, [], **{variable: ""}) == parse(name, [])
    # `--version` has no variable, because other programs use this name.
    answer = CliRunner().invoke(main, [name, "-h"], env={"RESDEPLOY_VERSION": "x"})
    assert f" RESDEPLOY_{name.upper()}_" in answer.output


def invoke(*arguments: str, **variables: str) -> Result:
    @click.option("--port", type=int)
    @click.option("--force", is_flag=True)
    def use(port: int | None, force: bool) -> CommandResult:
        if port == 0:
            reject_options(("force",), "0 writes nothing")
        return CommandResult(RESULT, f"{port} {force}")

    group = ReadableGroup(commands={"use": command(use)})
    return CliRunner().invoke(group, ["use", *arguments], prog_name="x", env=variables)


def test_a_wrong_value_is_reported_with_its_source() -> None:
    answer = invoke(RESDEPLOY_USE_PORT="tcp://10.0.0.1:80")
    assert answer.exit_code == 2
    assert "Invalid value for RESDEPLOY_USE_PORT: 'tcp://" in answer.stderr
    assert "for '--port': 'a'" in invoke("--port", "a", RESDEPLOY_USE_PORT="1").stderr
    assert "'maybe' is not" in invoke(RESDEPLOY_USE_FORCE="maybe").stderr
    answer = invoke("--port", "0", RESDEPLOY_USE_FORCE="1")
    assert "0 writes nothing: unset RESDEPLOY_USE_FORCE" in answer.stderr
    assert json.loads(invoke("--port", "a", RESDEPLOY_USE_JSON="1").stdout)["exit"] == 2


def test_variables_in_use_and_unknown_ones_are_logged() -> None:
    answer = invoke(RESDEPLOY_USE_PORT="1", RESDEPLOY_USE_PROT="2", RESDEPLOY_OTHER="3")
    unknown = "no option of use belongs to RESDEPLOY_USE_PROT"
    assert answer.stdout == "1 False\n"
    used = "options set by variables: RESDEPLOY_USE_PORT"
    assert answer.stderr.splitlines() == [used, f"warning: {unknown}"]
    document = json.loads(invoke("--json", **{"RESDEPLOY_USE_PROT\x1b": "1"}).stdout)
    assert [w["message"] for w in document["warnings"]] == [rf"{unknown}\x1b"]


@pytest.mark.parametrize("flag", ["-v", "--debug"])
def test_verbose_logs_begin_with_the_versions(flag: str) -> None:
    assert invoke(flag).stderr.startswith(f"resdeploy {__version__}, Python 3.")
    assert invoke().stderr == ""


@pytest.mark.parametrize(("shell", "word"), [("bash", "2"), ("zsh", "2"), ("fish", "--prec")])
def test_the_completion_of_a_shell(shell: str, word: str) -> None:
    words = {"COMP_WORDS": "resdeploy verify --prec", "COMP_CWORD": word}
    for step, found in (("source", "_RESDEPLOY_COMPLETE"), ("complete", "--precision")):
        environment = {"_RESDEPLOY_COMPLETE": f"{shell}_{step}", **words}
        assert found in CliRunner(env=environment).invoke(main, prog_name="resdeploy").output
