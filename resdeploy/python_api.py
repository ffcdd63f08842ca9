"""The names of the package: `load`, `Scorer`, and the commands `export`, `train` and `verify`.

Options have the names, the meaning, the defaults and the limits of the command line, because the
commands themselves parse them: `--calibration-data photos` is `calibration_data="photos"`.
"""

from __future__ import annotations

import inspect
import os
from copy import copy
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

from resdeploy.runtime.model import load
from resdeploy.runtime.scoring.scorer import Scorer

if TYPE_CHECKING:
    from click import Command, Parameter

    from resdeploy.export.pipeline import ExportResult
    from resdeploy.export.replace_golden import GoldenReplacement
    from resdeploy.export.triton.repository import TritonRepository
    from resdeploy.result_files.verification import Verification
    from resdeploy.train.run.results import TrainingResult

    Exported: TypeAlias = ExportResult | GoldenReplacement | TritonRepository

__all__ = ["Scorer", "export", "load", "train", "verify"]
Source: TypeAlias = "str | os.PathLike[str]"
Target: TypeAlias = "str | os.PathLike[str] | None"
OF_THE_CONSOLE = ("--json", "--verbose", "--debug")
"""Options that say what a command prints."""


def export(source: Source = "runs/latest", output: Target = None, **options: Any) -> Exported:
    """Export a run folder, a checkpoint or an ONNX file to a bundle, as `resdeploy export` does.

    Example: `resdeploy.export("weights.pth", "r34.bundle", int8=True, calibration_data="photos")`.

    Args:
        source: A run folder, a checkpoint, an ONNX file; with `triton` or `golden_data`, a bundle.
        output: Bundle to write; None for `NAME.bundle`.
        **options: Options of `resdeploy export --help`, such as `int8`, `mean` and `force`.

    Raises:
        ResdeployError: As the command's errors, with a `hint`.
        TypeError, ValueError: An option does not exist, or its value is not allowed.
    """
    from resdeploy.cli.export import export as command

    result: ExportResult = _run(command, source, options | {"output": output})
    return result


def train(data: Target = None, output: Target = None, **options: Any) -> TrainingResult:
    """Train a network on a folder of labelled images, as `resdeploy train` does.

    Example: `resdeploy.train("photos", epochs=10, init="weights.pth").accuracy`.

    Args:
        data: Folder of images, or `digits`; None for the default of the command.
        output: Run folder to write; None for one in `runs`.
        **options: Options of `resdeploy train --help`, such as `epochs`, `resume` and `force`.

    Raises:
        ResdeployError: As for `export`.
    """
    from resdeploy.cli.train import train as command

    result: TrainingResult = _run(command, data, options | {"output": output})
    return result


def verify(bundle: Source, **options: Any) -> Verification:
    """Check that a bundle computes on this machine what its export computed.

    Example: `resdeploy.verify("r34.bundle", data="photos/val", max_drop=0.5).verdict`.

    Args:
        bundle: Folder of the bundle.
        **options: Options of `resdeploy verify --help`, such as `data`, `max_drop` and `threads`.

    Raises:
        ResdeployError: As for `export`.
    """
    from resdeploy.cli.verify import verify as command

    result: Verification = _run(command, bundle, options)
    return result


def _run(command: Command, argument: object, options: dict[str, Any]) -> Any:
    """Return the result of a command: write its command line, and let the command itself read it.

    The keys of `options` are names of long options in Python's spelling; None is the default.
    """
    import click

    command = _without_console(command)
    known = {
        name[2:].replace("-", "_"): parameter
        for parameter in command.params
        for name in parameter.opts
        if name.startswith("--")
    }
    words: list[str] = []
    for name, value in options.items():
        if name not in known:
            names = ", ".join(sorted(known))
            raise TypeError(f"{command.name} has no option {name!r}; its options are {names}")
        if value is not None:
            words += _words(known[name], value)
    words += ["--"] if argument is None else ["--", _text(argument)]
    try:
        with command.make_context(command.name, words) as context:
            assert command.callback is not None
            return inspect.unwrap(command.callback)(**context.params).result
    except click.ClickException as error:
        raise ValueError(error.format_message()) from error


def _without_console(command: Command) -> Command:
    """Return the command without options of the console, and without variables."""
    bare = copy(command)
    bare.params = [copy(p) for p in command.params if not {*p.opts} & {*OF_THE_CONSOLE}]
    for parameter in bare.params:
        parameter.envvar = None
    return bare


def _words(option: Parameter, value: Any) -> list[str]:
    """Return the words of a command line that give an option a value."""
    long = next(name for name in option.opts if name.startswith("--"))
    if getattr(option, "is_flag", False):
        if not isinstance(value, bool):
            raise ValueError(f"{long[2:].replace('-', '_')} is {value!r}; it is True or False")
        return [long] if value else option.secondary_opts[:1]
    return [f"{long}={_text(value, 'x' if long == '--image-size' else ',')}"]


def _text(value: object, separator: str = ",") -> str:
    if isinstance(value, (list, tuple)):
        return separator.join(map(_text, value))
    return str(value.value if isinstance(value, Enum) else value)
