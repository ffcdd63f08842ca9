"""Access to the files, commands and drivers of a machine, which tests replace."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any


def run_command(command: Sequence[str]) -> str:
    """Return the stdout of a command; an empty text if it cannot be run or takes too long."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=10,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def load_nvml() -> Any:
    """Import NVIDIA's pynvml and start it; return None if it or the driver is missing."""
    try:
        nvml = import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The files, commands and drivers of one machine; by default those of this machine."""

    root: Path = Path("/")
    """The folder that is used as the root folder."""
    architecture: str = platform.machine()
    environment: Path | None = Path(sys.prefix) if sys.prefix != sys.base_prefix else None
    """The virtual environment of Python; None outside one."""
    python: tuple[int, int] = sys.version_info[:2]
    run: Callable[[Sequence[str]], str] = run_command
    nvml: Callable[[], Any] = load_nvml
    read_bytes: Callable[[Path], bytes] = Path.read_bytes

    def text(self, path: str | Path) -> str:
        """Read a file without the NULs of a device tree; return "" if it cannot be read."""
        try:
            data = self.read_bytes(self.root / path)
        except (OSError, ValueError):
            return ""
        return data.decode(errors="replace").strip("\0 \n")

    def number(self, path: str | Path) -> int | None:
        """Read the integer in a file of the kernel; return None if it holds none."""
        try:
            return int(self.text(path))
        except ValueError:
            return None

    def find(self, pattern: str) -> list[Path]:
        """Return the sorted paths below the root that match a pattern."""
        return sorted(self.root.glob(pattern))

    def denies_access(self, path: Path) -> bool:
        """Return True if the file exists but its permissions do not allow reading it."""
        try:
            self.read_bytes(path)
        except (OSError, ValueError) as error:
            return isinstance(error, PermissionError)
        return False
