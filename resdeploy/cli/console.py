"""Output of every command: its result on stdout as text or JSON, errors and logs on stderr."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import sys
from collections.abc import Callable, Iterable
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from resdeploy.errors import ResdeployError, missing_dependency
from resdeploy.json_documents import jsonable

if TYPE_CHECKING:
    from resdeploy.statistics import Verdict

PATH = click.Path(path_type=Path, readable=False)
"""A path that may be missing or unreadable: functions that open it raise errors with hints."""


class ExitCode(IntEnum):
    """Exit code of a command; click itself exits with 2 on wrong usage."""

    OK = 0
    FAILED = 1
    INCONCLUSIVE = 3


@dataclasses.dataclass(frozen=True, slots=True)
class CommandResult:
    """Result of a command, with its console text and its exit code."""

    result: Any
    """Dataclass, or list of dataclasses, that `--json` prints."""
    text: str
    """Text that is printed without `--json`."""
    exit: ExitCode = ExitCode.OK
    printed: bool = True
    """False in all but the first process of a distributed training: they print nothing."""


def command(function: Callable[..., CommandResult]) -> click.Command:
    """Return a command with `--json` and `--debug` that prints its result or a one-line error."""

    @click.command()
    @functools.wraps(function)
    def run_command(*, as_json: bool, debug: bool, **arguments: Any) -> None:
        _log_to_stderr(debug=debug)
        try:
            result = function(**arguments)
        except click.ClickException:
            raise
        except Exception as error:
            if debug:
                raise
            _print_error(error)
            sys.exit(ExitCode.FAILED)
        if result.printed and as_json:
            click.echo(json.dumps(jsonable(result.result), indent=2, ensure_ascii=False))
        elif result.printed:
            click.echo(result.text)
        sys.exit(result.exit)

    run_command.params += [
        click.Option(["--json", "as_json"], is_flag=True, help="Print the result as JSON."),
        click.Option(["--debug"], is_flag=True, help="Print debug messages and full tracebacks."),
    ]
    return run_command


def exit_code(verdict: Verdict) -> ExitCode:
    return {"pass": ExitCode.OK, "fail": ExitCode.FAILED}.get(verdict.value, ExitCode.INCONCLUSIVE)


def reject_options(names: Iterable[str], reason: str) -> None:
    """Raise a usage error if a parameter in `names` was given on the command line."""
    context = click.get_current_context()
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is ParameterSource.COMMANDLINE and parameter.name in names:
            raise click.UsageError(f"{reason}: leave {parameter.opts[0]} out")


def _print_error(error: Exception) -> None:
    if isinstance(error, ModuleNotFoundError):
        error = missing_dependency(error)
    message, hint = " ".join(str(error).split()), getattr(error, "hint", None)
    if not isinstance(error, (ResdeployError, ValueError)):  # a bug in resdeploy
        message = f"{type(error).__name__}: {message}"
        hint = "run the command again with --debug and report its output"
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
    """Format that prefixes only warnings and errors with their level."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return prefix + record.getMessage()
