"""Options that several commands share."""

from __future__ import annotations

import click

FORCE = click.option("--force", is_flag=True, help="Replace an output that exists.")
BACKEND = click.option(
    "--backend",
    default="auto",
    help="Inference backend, such as onnxruntime-cpu; `resdeploy doctor` lists them.",
)
PRECISION = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "fp16", "int8"]),
    default="auto",
    help="Precision of the graph to use.",
)
THREADS = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="CPU threads of one inference.  [default: one per core]",
)
