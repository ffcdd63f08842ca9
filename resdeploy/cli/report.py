"""The command `resdeploy report`: write bundles and results as one page."""

from __future__ import annotations

from typing import Any

from click import argument, option

from resdeploy.cli.options.common import FORCE, LocalPath
from resdeploy.cli.options.console import PATH, CommandResult, command
from resdeploy.readable_text import readable


@command
@argument("sources", type=LocalPath(str), nargs=-1, required=True)
@option("-o", "--output", type=PATH, help="File to write.  [default: report.html]")
@option(
    "--markdown",
    is_flag=True,
    help="Write short Markdown instead of HTML, for a pull request, or print it without -o.",
)
@option("--time-layers", is_flag=True, help="Also measure each layer of the bundles on this CPU.")
@FORCE
def report(sources: tuple[str, ...], time_layers: bool, **settings: Any) -> CommandResult:
    """Write one HTML page about SOURCES.

    SOURCES are bundles, and JSON files of verify, bench and compare. The page loads nothing from
    the network and runs no script.
    """
    from resdeploy.report.report import report as write_report
    from resdeploy.runtime.backends.onnxruntime import profile

    timer = profile.time_layers if time_layers else None
    result = write_report(sources, time_layers=timer, **settings)
    text = readable(str(result.report)) if result.report else result.markdown
    return CommandResult(result, text)
