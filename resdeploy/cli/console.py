"""What the terminal sees: JSON or a table on stdout, everything else on stderr."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import sys
from collections.abc import Callable, Iterable
from enum import IntEnum
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from resdeploy.documents import jsonable
from resdeploy.errors import ResdeployError, missing_dependency

PATH = click.Path(path_type=Path)  # existence is checked by us, with a hint


class ExitCode(IntEnum):
    """ExitCode codes of every command; 2 is click's own for wrong usage."""

    OK = 0
    FAILED = 1
    INCONCLUSIVE = 3


def refuse_given(names: Iterable[str], reason: str) -> None:
    """Wrong usage if one of the parameters `names` stands on the command line."""
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
        if given and parameter.name in names:
            raise click.UsageError(f"{reason}: leave {parameter.opts[0]} out")


def exit_code(verdict: Any) -> ExitCode:
    """0 for pass, 1 for fail, 3 for inconclusive."""
    return {"pass": ExitCode.OK, "fail": ExitCode.FAILED}.get(verdict.value, ExitCode.INCONCLUSIVE)


def parameters(
    *chosen: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command all of them, arguments and options, in this order."""

    def give(function: Callable[..., Any]) -> Callable[..., Any]:
        for parameter in reversed(chosen):
            function = parameter(function)
        return function

    return give


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--json` and `--debug`, and turn errors into one line and a hint.

    The command returns its result, a dataclass; with `--json` the result is printed as JSON,
    otherwise what the command's own `render` argument is called with is up to the command.
    """

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
    @click.option("--debug", is_flag=True, help="Show details and tracebacks.")
    @functools.wraps(function)
    def wrapped(*, as_json: bool, debug: bool, **arguments: Any) -> None:
        _log_to_stderr(debug=debug)
        try:
            outcome: CommandResult = function(**arguments)
        except click.ClickException:
            raise
        except Exception as error:
            if debug:
                raise
            _print_error(error)
            sys.exit(ExitCode.FAILED)
        if not outcome.printed:
            sys.exit(outcome.exit)
        if as_json:
            click.echo(json.dumps(jsonable(outcome.result), indent=2, ensure_ascii=False))
        else:
            click.echo(outcome.text)
        sys.exit(outcome.exit)

    return wrapped


@dataclasses.dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command gives back: for programs, for people, for shells."""

    result: Any
    text: str
    exit: ExitCode = ExitCode.OK
    printed: bool = True
    """Not by all of several processes that did one thing together."""


def _print_error(error: Exception) -> None:
    if isinstance(error, ModuleNotFoundError):
        error = missing_dependency(error)
    message, hint = " ".join(str(error).split()), getattr(error, "hint", None)
    if not isinstance(error, (ResdeployError, ValueError)):  # nobody foresaw it
        message = f"{type(error).__name__}: {message}"
        hint = "run the command again with --debug and report what it shows"
    click.echo(f"{click.style('error:', fg='red', bold=True)} {message}", err=True)
    if hint:
        click.echo(f"{click.style('hint:', bold=True)} {hint}", err=True)


def _log_to_stderr(*, debug: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    logger = logging.getLogger("resdeploy")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return prefix + record.getMessage()
