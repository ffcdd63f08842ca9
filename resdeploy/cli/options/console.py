"""Output of every command: its result on stdout as text or JSON, errors and logs on stderr."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from resdeploy import __version__
from resdeploy.bundle.manifest import ExportWarning
from resdeploy.bundle.quality import short_lines, warning_lines
from resdeploy.cli.options.common import LocalPath
from resdeploy.cli.options.variables import (
    add_variables,
    name_variable,
    unknown_variables,
    variable_is_set,
    variables_in_use,
)
from resdeploy.errors import (
    BundleError,
    Interrupted,
    ResdeployError,
    Terminated,
    end_command,
    missing_dependency,
    one_line_reason,
    remedy_for,
)
from resdeploy.json_documents import jsonable, to_text
from resdeploy.progress import progress_bar, silent
from resdeploy.readable_text import readable, readable_texts

if TYPE_CHECKING:
    from resdeploy.statistics import Verdict

logger = logging.getLogger(__name__)
HELP = {"help_option_names": ["-h", "--help"]}  # settings of each command and of the group
SWAPPED_WORDS = 3  # in a hint, of which a shell may have written hundreds
LOGGED_WARNINGS = 100  # in a document; a server may log any number
PATH = LocalPath()


# Without memory, nothing longer can be formatted.
_NO_MEMORY = b"error: there is not enough memory\nhint: close other programs, and run it again\n"
_NO_MEMORY_JSON = (
    b'{"schema": "resdeploy.error/1", "error": "there is not enough memory",'
    b' "hint": "close other programs, and run it again", "exit": 1, "warnings": []}\n'
)
_ENDED = "{}: results that were not complete have not been written; run the command again"
# Error whose message is the help; click 8.1 has none.
_HELP = getattr(click.exceptions, "NoArgsIsHelpError", ())
_AS_JSON = "resdeploy.as_json"  # key of click's `Context.meta`


class ExitCode(IntEnum):
    """Exit code of a command; click itself exits with 2 on wrong usage."""

    OK = 0
    FAILED = 1
    INCONCLUSIVE = 3


class ReadableGroup(click.Group):
    """A group of commands whose usage errors quote arguments readably, with `--json` as JSON."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order in which a model needs them

    def main(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().main(*arguments, **options)
        except (MemoryError, SystemError):  # raised while an error or a result was printed
            words = arguments[0] if arguments else None
            if _asks_for("--debug", words):
                raise
            os.write(2, _NO_MEMORY)
            if _asks_for("--json", words):
                os.write(1, _NO_MEMORY_JSON)
            sys.exit(ExitCode.FAILED)

    def make_context(
        self, info_name: str | None, args: list[str], *others: Any, **options: Any
    ) -> click.Context:
        as_json = _asks_for("--json", args)
        with _readable_errors(as_json=as_json):
            context = super().make_context(info_name, args, *others, **options)
        context.meta[_AS_JSON] = as_json
        return context

    def invoke(self, ctx: click.Context) -> Any:
        with _readable_errors(as_json=ctx.meta[_AS_JSON]):
            return super().invoke(ctx)


@dataclasses.dataclass(frozen=True, slots=True)
class CommandResult:
    """Result of a command, with its console text and its exit code."""

    result: Any
    """Dataclass with the field `schema` that `--json` prints."""
    text: str
    """Text that is printed without `--json`."""
    exit: ExitCode = ExitCode.OK
    warnings: Sequence[ExportWarning] = ()
    """Warnings of the bundle, which are the first lines of the output."""
    page: Path | None = None
    """Page with the warnings in full, if the output shortens them."""
    printed: bool = True
    """False in all but the first process of a distributed training: they print nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """The document of a command that failed, with `--json`."""

    error: str
    """One sentence with the cause."""
    hint: str | None
    """The remedy, if it is known."""
    exit: int
    """Exit code of the command."""
    schema: str = "resdeploy.error/1"


def command(
    function: Callable[..., CommandResult], *, shows_progress: bool = True
) -> click.Command:
    """Return a command with `--json` and `--debug` that prints its result or a one-line error.

    While the function works, stderr shows its progress; `shows_progress` is False for a server,
    whose log is JSON. Every option can also be set by a variable of the environment.
    """
    show = progress_bar if shows_progress else silent

    @click.command(context_settings=HELP)
    @functools.wraps(function)
    def run_command(*, as_json: bool, verbose: bool, debug: bool, **arguments: Any) -> None:
        in_json = not shows_progress and not sys.stderr.isatty()
        logged = _log_to_stderr(debug=verbose or debug, in_json=in_json)
        _log_start(click.get_current_context())
        try:
            # A server has an action of its own, and nothing to write.
            with terminable() if shows_progress else nullcontext(), show(function.__name__, 0):
                result = function(**arguments)
        except (click.ClickException, BrokenPipeError):  # `main` of click ends without a message
            raise
        except Exception as error:
            failure = _failure(error)
            if isinstance(error, BundleError) and (hint := _swapped_hint(arguments)):
                failure = dataclasses.replace(failure, hint=hint)
            if as_json:
                _print_document(failure, logged)
            if debug:
                raise
            click.echo(f"{click.style('error:', fg='red', bold=True)} {failure.error}", err=True)
            if failure.hint:
                click.echo(f"{click.style('hint:', bold=True)} {failure.hint}", err=True)
            sys.exit(ExitCode.FAILED)
        if result.printed and as_json:
            _print_document(result.result, [*result.warnings, *logged])
        elif result.printed:
            warnings = result.warnings
            lines = short_lines(warnings, result.page) if result.page else warning_lines(warnings)
            print_text("\n".join([*lines, result.text]))
        sys.exit(result.exit)

    run_command.params += [
        click.Option(
            ["--json", "as_json"], is_flag=True, help="Print one JSON document instead of text."
        ),
        click.Option(["-v", "--verbose"], is_flag=True, help="Print debug messages."),
        click.Option(
            ["--debug"],
            is_flag=True,
            help="Print debug messages, and a traceback instead of the line of an error.",
        ),
    ]
    add_variables(run_command)
    return run_command


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, with a message.

    Processes of one training keep the usual action: no handler runs while they wait for each other.
    """
    in_main = threading.current_thread() is threading.main_thread()
    is_usual = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not in_main or not is_usual or "WORLD_SIZE" in os.environ:  # of torchrun
        yield
        return
    signal.signal(signal.SIGTERM, end_command)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def print_text(text: str) -> None:
    """Print text of a result; its parts must be readable, see `result_text`."""
    click.echo(_highlighted(readable(text, keep="\n\t")))


def prints_json() -> bool:
    """Return True if the command that runs prints its result as JSON."""
    return bool(click.get_current_context().params.get("as_json"))


def result_text(function: Callable[..., str]) -> Callable[..., str]:
    """Decorate a function that formats a result: no text in the result can begin a line."""

    @functools.wraps(function)
    def format_readable(*arguments: Any) -> str:
        return function(*map(readable_texts, arguments))

    return format_readable


def exit_code(verdict: Verdict) -> ExitCode:
    codes = {"pass": ExitCode.OK, "reproduced": ExitCode.OK, "fail": ExitCode.FAILED}
    return codes.get(verdict.value, ExitCode.INCONCLUSIVE)


def reject_options(names: Iterable[str], reason: str) -> None:
    """Raise a usage error if a parameter in `names` was given, or set by a variable."""
    context = click.get_current_context()
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is ParameterSource.COMMANDLINE and parameter.name in names:
            raise click.UsageError(f"{reason}: leave {parameter.opts[0]} out")
        if source is ParameterSource.ENVIRONMENT and parameter.name in names:
            raise click.UsageError(f"{reason}: unset {parameter.envvar}")


@contextmanager
def _readable_errors(*, as_json: bool) -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        name_variable(error)
        if not isinstance(error, _HELP):
            vars(error)["message"] = readable(error.message)
        if near := getattr(error, "possibilities", None):
            # difflib gave them to click in the order of similarity, and click would sort them.
            names = " or ".join(map(repr, near))
            vars(error).update(message=f"{error.message} Did you mean {names}?", possibilities=None)
        parameters = getattr(getattr(getattr(error, "ctx", None), "command", None), "params", ())
        if extra := re.search(r"unexpected extra arguments? \((.*)\)", error.message):
            if all(re.fullmatch(r"[\d.,]+", word) for word in extra[1].split()):
                hint = "; separate the numbers of an option by commas, without blanks: 0.5,0.5,0.5"
            else:
                takes_data = any("--data" in parameter.opts for parameter in parameters)
                hint = "; name a folder of images with --data" if takes_data else ""
            vars(error).update(message=f"{error.message}{hint}")
        if as_json:
            path = getattr(getattr(error, "ctx", None), "command_path", "resdeploy")
            hint = f"see {path} --help"
            _print_document(Failure(error.format_message(), hint, error.exit_code), ())
        raise
    except KeyboardInterrupt as stop:
        told = isinstance(stop, Interrupted)
        terminated = isinstance(stop, Terminated)
        ended = _ENDED.format("terminated" if terminated else "interrupted")
        what = readable(str(stop)) if told else ended
        code: int = ExitCode.FAILED
        if isinstance(stop, (Interrupted, Terminated)):
            code = stop.code
        if as_json:
            _print_document(Failure(what, None, code), ())
        if not told:
            click.echo(f"\n{what}", err=True)
        sys.exit(code)  # click would print another message


def _asks_for(flag: str, arguments: Sequence[str] | None) -> bool:
    """Return True if a flag is in a command line, which may not be parsed yet, or in a variable."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = next((word for word in words if not word.startswith("-")), "")
    given = flag in words[: words.index("--") if "--" in words else None]
    return given or variable_is_set(command, flag)


def _print_document(result: Any, warnings: Iterable[ExportWarning]) -> None:
    values = dict(jsonable(result))
    schema, own = values.pop("schema"), values.pop("warnings", [])
    found = {"warnings": [*own, *jsonable(list(warnings))]}
    click.echo(to_text({"schema": schema, **values, **found}))


def _highlighted(text: str) -> str:
    mark = click.style("warning:", fg="yellow", bold=True)
    return re.sub(r"^warning:", lambda match: mark, text, flags=re.MULTILINE)


def _failure(error: Exception) -> Failure:
    if isinstance(error, ImportError):
        error = missing_dependency(error)
    message, hint = readable(" ".join(str(error).split())), getattr(error, "hint", None)
    if not isinstance(error, (ResdeployError, ValueError)):
        hint = remedy_for(error, "run the command again with --debug and report its output")
        file = getattr(error, "filename", None)
        what = f"{file} cannot be used" if file else type(error).__name__
        message = readable(f"{what}: {one_line_reason(error)}")
    return Failure(message, readable(hint) if hint else None, ExitCode.FAILED)


def _swapped_hint(arguments: Mapping[str, Any]) -> str | None:
    """Return the right command if the first argument is no bundle, but a later one is."""
    from resdeploy.bundle.bundle import is_bundle

    context = click.get_current_context()
    parameters = [p.name or "" for p in context.command.params if isinstance(p, click.Argument)]
    values = [arguments[name] for name in parameters]
    words = [str(w) for value in values for w in (value if isinstance(value, tuple) else (value,))]
    bundle = next((word for word in words[1:] if is_bundle(Path(word))), None)
    if parameters[:1] != ["bundle"] or bundle is None or is_bundle(Path(words[0])):
        return None
    words.remove(bundle)
    more = " ..." if len(words) > SWAPPED_WORDS else ""
    shown = shlex.join([bundle, *words[:SWAPPED_WORDS]])
    return readable(f"the bundle comes first: {context.command_path} {shown}{more}")


def _log_start(context: click.Context) -> None:
    """Log what this runs on, for reports of faults, and the variables that set options."""
    python, kernel = sys.version.split()[0], os.uname()
    logger.debug(
        "resdeploy %s, Python %s, %s %s", __version__, python, kernel.sysname, kernel.machine
    )
    if used := ", ".join(variables_in_use(context)):
        logger.info("options set by variables: %s", used)
    if unknown := ", ".join(unknown_variables(context.command, os.environ)):
        logger.warning("no option of %s belongs to %s", context.command.name, unknown)


def _log_to_stderr(*, debug: bool, in_json: bool) -> list[ExportWarning]:
    """Print log messages on stderr; return a list to which the first warnings are added."""
    handler, logged, text = _StderrHandler(), list[ExportWarning](), _Formatter()
    handler.setFormatter(text)
    if in_json:
        from resdeploy.runtime.serving.logs import JsonFormatter

        handler.setFormatter(JsonFormatter())

    def keep(record: logging.LogRecord) -> bool:
        if record.levelno == logging.WARNING and len(logged) < LOGGED_WARNINGS:
            message = text.format(record).removeprefix("warning: ")
            logged.append(ExportWarning(message=message, hint=""))
        return True

    handler.addFilter(keep)
    top = logging.getLogger("resdeploy")
    top.handlers[:] = [handler]
    top.setLevel(logging.DEBUG if debug else logging.INFO)
    return logged


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]  # 3.10 refuses it
    """A handler for the present `sys.stderr`: while bars are drawn, lines appear above them."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _Formatter(logging.Formatter):
    """Format that prefixes only warnings and errors with their level."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        arguments = readable_texts(record.args)  # none of them can begin a line
        text = str(record.msg) % arguments if arguments else str(record.msg)
        return prefix + readable(text, keep="\n\t")
