"""The entry point `resdeploy` and its commands.

A command parses its options, calls one function and prints the result. Heavy packages are imported
inside the commands, so that `--help` answers quickly.
"""

from __future__ import annotations

from collections import UserDict
from importlib import import_module
from typing import Any

import click

from resdeploy import __version__
from resdeploy.cli.options.console import HELP, ReadableGroup

NAMES = (
    "demo", "train", "inspect", "preprocess", "export", "build", "sign", "verify", "bench",
    "compare", "report", "predict", "score", "serve", "explain", "doctor",
)  # fmt: skip


class _Commands(UserDict[str, Any]):
    """The commands by name; each module is imported when its command is looked up."""

    def __getitem__(self, name: str) -> click.Command:
        super().__getitem__(name)  # raises a KeyError
        found: click.Command = getattr(import_module(f"resdeploy.cli.{name}"), name)
        return found


@click.group(
    cls=ReadableGroup,
    commands=_Commands(dict.fromkeys(NAMES)),
    context_settings={**HELP, "show_default": True},
)
@click.version_option(__version__, prog_name="resdeploy")
def main() -> None:
    """Train a ResNet, export it to ONNX, run it on GPUs, Jetsons and CPUs, and verify it there.

    A bundle is the folder that `export` writes and most commands read: ONNX graphs, labels, and
    golden images with PyTorch's logits, which verify the graphs on any machine.

    Variables of the environment can set options: RESDEPLOY_SERVE_PORT=9000 is `serve --port 9000`.
    The command line has priority.
    """
