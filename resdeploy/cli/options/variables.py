"""Environment variables that set options: `RESDEPLOY_SERVE_PORT` is `--port` of `serve`.

The name comes from the option and not, as with click's `auto_envvar_prefix`, from the parameter in
Python, which may be another one; and the options `--version` and `--help` of the group have no
variable, so that `RESDEPLOY_VERSION` in an environment means nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import click
from click.core import ParameterSource

PREFIX = "RESDEPLOY"


def option_variable(command: str, option: str) -> str:
    """Return the name of the variable for an option such as `--grpc-port`."""
    return f"{PREFIX}_{command}_{option.lstrip('-')}".upper().replace("-", "_")


def add_variables(command: click.Command) -> None:
    """Give each option of a command its variable, and say so at the end of the command's help."""
    for option in reversed(_options(command)):
        name = max(option.opts, key=len)
        option.envvar = option_variable(command.name or "", name)
        command.epilog = (
            f"Variables of the environment can set options, such as {option.envvar} for {name}."
        )


def name_variable(error: click.ClickException) -> None:
    """Let a usage error name the variable instead of the option if the value came from it."""
    if isinstance(error, click.BadParameter) and error.ctx and error.param:
        source = error.ctx.get_parameter_source(error.param.name or "")
        if source is ParameterSource.ENVIRONMENT:
            error.param_hint = str(error.param.envvar)


def variables_in_use(context: click.Context) -> Iterator[str]:
    """Yield the names of the variables that set options of the command that runs."""
    for option in _options(context.command):
        if context.get_parameter_source(option.name or "") is ParameterSource.ENVIRONMENT:
            yield str(option.envvar)


def unknown_variables(command: click.Command, environment: Mapping[str, str]) -> list[str]:
    """Return variables with the command's prefix that belong to no option, such as a misspelt one.

    Kubernetes sets some for a Service with the name `resdeploy-COMMAND`.
    """
    known = {option.envvar for option in _options(command)}
    prefix = option_variable(command.name or "", "")
    return sorted(n for n in environment if n.startswith(prefix) and n not in known)


def variable_is_set(command: str, option: str) -> bool:
    """Return True if a variable sets a flag, for a command line that may be impossible to parse."""
    text = os.environ.get(option_variable(command, option), "")
    try:
        return bool(text) and click.BOOL(text)
    except click.BadParameter:
        return False


def _options(command: click.Command) -> list[click.Option]:
    return [parameter for parameter in command.params if isinstance(parameter, click.Option)]
