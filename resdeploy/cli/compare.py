"""TODO."""

from __future__ import annotations

from typing import Any

import click

from resdeploy.cli.console import PATH, CommandResult, command, exit_code, parameters

compare_options = parameters(
    click.argument("first"),
    click.argument("second"),
    click.option(
        "--data",
        type=PATH,
        help="Labelled folder.  [default: the golden images of FIRST]",
    ),
    click.option(
        "--max-drop",
        type=click.FloatRange(0, 100),
        default=0.2,
        show_default=True,
        help="Points of accuracy.",
    ),
    click.option(
        "--max-slowdown",
        type=click.FloatRange(0),
        default=5.0,
        show_default=True,
        help="Percent of time.",
    ),
    click.option("--backend", default="auto", show_default=True, help="Engine to use."),
    click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "fp16", "int8"]),
        default="auto",
        show_default=True,
    ),
    click.option("--batch", type=click.IntRange(1, 4096), default=1, show_default=True),
    click.option(
        "--threads",
        type=click.IntRange(1, 1024),
        help="Threads of one inference.  [default: all cores]",
    ),
    click.option(
        "--seconds",
        type=click.FloatRange(0),
        default=60.0,
        show_default=True,
        help="Longest timing of each graph; 0: no timing.",
    ),
)


@click.command()
@compare_options
@command
def compare(first: str, second: str, **settings: Any) -> CommandResult:
    """Is SECOND as accurate and as fast as FIRST? ExitCode 1: no, 3: undecided.

    Two bundles, which are run here, or two files of benchmarks. FILE@DATE is one date of several.
    """
    from resdeploy.progress import progress_bar
    from resdeploy.report.comparison import comparison_text
    from resdeploy.runtime.comparison.compare import CompareConfig
    from resdeploy.runtime.comparison.compare import compare as run_compare

    result = run_compare(first, second, CompareConfig(**settings), progress=progress_bar)
    return CommandResult(result, comparison_text(result), exit_code(result.verdict))
