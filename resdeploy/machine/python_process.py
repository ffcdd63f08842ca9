"""Processes that run a module of Python: the command that starts one, and its end with ours."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

START = """import sys; sys.path[:] = {!r}
import runpy; runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)"""


def python_command(module: str, *arguments: object) -> list[str]:
    """Return the command `python -m module arguments...`, for the packages of this process.

    The current folder, where anybody may leave modules, is searched only if it holds resdeploy.
    """
    path = [entry for entry in sys.path if not _is_current_folder(entry)]
    code = START.format([*path, str(Path(__file__).parents[2])])
    return [sys.executable, "-c", code, module, *map(str, arguments)]


def _is_current_folder(entry: str) -> bool:
    with suppress(OSError):  # it does not exist
        return os.path.samefile(entry or ".", ".")
    return False


def end_with_parent() -> None:
    """Let the kernel kill this process when the thread that started it ends; see prctl(2)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
