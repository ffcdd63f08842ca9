"""The entry point `resdeploy` and its commands.

A command parses its options, calls one function and prints the result. Heavy packages are imported
inside the commands, so that `--help` answers quickly.
"""

from __future__ import annotations

import click

from resdeploy import __version__
from resdeploy.cli.bench import bench
from resdeploy.cli.build import build
from resdeploy.cli.compare import compare
from resdeploy.cli.demo import demo
from resdeploy.cli.doctor import doctor
from resdeploy.cli.explain import explain
from resdeploy.cli.export import export
from resdeploy.cli.inspect import inspect
from resdeploy.cli.options.console import ReadableGroup
from resdeploy.cli.predict import predict
from resdeploy.cli.preprocess import preprocess
from resdeploy.cli.report import report
from resdeploy.cli.serve import serve
from resdeploy.cli.sign import sign
from resdeploy.cli.train import train
from resdeploy.cli.verify import verify


@click.group(
    cls=ReadableGroup,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, prog_name="resdeploy")
def main() -> None:
    """Train a ResNet, export it to ONNX, run it on GPUs, Jetsons and CPUs, and verify it there."""


for _command in (
    demo, train, inspect, preprocess, export, build, sign, verify, bench, compare, report, predict,
    serve, explain, doctor,
):  # fmt: skip
    main.add_command(_command)
