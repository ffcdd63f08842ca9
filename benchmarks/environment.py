"""Virtual environments in which the benchmarks install other tools."""

from __future__ import annotations

import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path

import click


def make_environment(folder: Path, requirements: Sequence[str]) -> Path:
    """Return the interpreter of an environment; install it on first use and after changes."""
    python = folder / "bin" / "python"
    installed, wanted = folder / "installed.txt", "\n".join(requirements)
    if not installed.exists() or installed.read_text() != wanted:
        click.echo(f"installing {', '.join(requirements)} into {folder}", err=True)
        venv.create(folder, with_pip=True, clear=True)
        # One by one: if torch is installed first, modelopt does not install a CUDA build of it.
        for requirement in requirements:
            subprocess.run([python, "-m", "pip", "install", "--quiet", requirement], check=True)
        installed.write_text(wanted)
    return python
