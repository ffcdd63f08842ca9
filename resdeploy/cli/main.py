"""The command line: parse, call one function, show its result. Nothing is decided here.

Heavy packages are imported inside the commands, so that `--help` answers at once.
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
from resdeploy.cli.predict import predict
from resdeploy.cli.report import report
from resdeploy.cli.serve import serve
from resdeploy.cli.train import train
from resdeploy.cli.verify import verify


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="resdeploy")
def main() -> None:
    """Train a ResNet, export it once, run it on GPUs, Jetsons and CPUs, and prove the answers."""


for one in (
    demo,
    train,
    export,
    build,
    verify,
    bench,
    compare,
    report,
    predict,
    serve,
    explain,
    doctor,
):
    main.add_command(one)
