"""TODO."""

from __future__ import annotations

import click

FORCE = click.option("--force", is_flag=True, help="Replace an existing output.")


BACKEND = click.option("--backend", default="auto", show_default=True, help="Engine to use.")


PRECISION = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "fp16", "int8"]),
    default="auto",
    show_default=True,
)


THREADS = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="Threads of one inference.  [default: all cores]",
)
