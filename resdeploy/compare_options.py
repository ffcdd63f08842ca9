"""What can be set on `resdeploy compare`; `CompareConfig` says more of each."""

from __future__ import annotations

import click

from resdeploy.console import PATH, parameters

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
