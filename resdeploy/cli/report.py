"""TODO."""

from __future__ import annotations

from typing import Any

import click

from resdeploy.cli.console import PATH, CommandResult, command
from resdeploy.cli.options import FORCE


@click.command()
@click.argument("sources", nargs=-1, required=True)
@click.option("-o", "--output", type=PATH, help="File.  [default: report.html]")
@click.option("--markdown", is_flag=True, help="For a pull request; printed, unless -o is given.")
@click.option("--time-layers", "with_times", is_flag=True, help="Of bundles, here on the CPU.")
@FORCE
@command
def report(sources: tuple[str, ...], with_times: bool, **settings: Any) -> CommandResult:
    """One page about SOURCES: bundles, and JSON of verify, bench and compare.

    It needs no network and no script.
    """
    from resdeploy.report.report import report as run_report
    from resdeploy.runtime.backends.onnxruntime.profile import time_layers

    result = run_report(sources, time_layers=time_layers if with_times else None, **settings)
    return CommandResult(result, str(result.report or result.markdown))
