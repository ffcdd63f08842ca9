"""Where facts about a machine are read from; a test describes any machine with a folder."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

COMMAND_SECONDS = 10


def run_command(command: Sequence[str]) -> str:
    """What a command prints on stdout; nothing where it is missing, refused or slow."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=COMMAND_SECONDS,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def load_nvml() -> Any:
    """NVIDIA's module for its driver's figures; None where it or the driver is missing."""
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
    """The files, commands and drivers of one machine; the defaults are this one."""

    root: Path = Path("/")
    """What stands for the root folder."""
    architecture: str = platform.machine()
    environment: Path | None = Path(sys.prefix) if sys.prefix != sys.base_prefix else None
    """The virtual environment that Python runs in, if any."""
    python: tuple[int, int] = sys.version_info[:2]
    run: Callable[[Sequence[str]], str] = run_command
    nvml: Callable[[], Any] = load_nvml
    read_bytes: Callable[[Path], bytes] = Path.read_bytes

    def text(self, path: str | Path) -> str:
        """A file's content without the NULs of a device tree; empty where it cannot be read."""
        try:
            data = self.read_bytes(self.root / path)
        except (OSError, ValueError):
            return ""
        return data.decode(errors="replace").strip("\0 \n")

    def number(self, path: str | Path) -> int | None:
        """The integer that a file of the kernel holds; None where it holds none."""
        try:
            return int(self.text(path))
        except ValueError:
            return None

    def find(self, pattern: str) -> list[Path]:
        """Paths that fit a pattern below the root, in order."""
        return sorted(self.root.glob(pattern))

    def denies_access(self, path: Path) -> bool:
        """Whether the file is there and only its permissions keep us from it."""
        try:
            self.read_bytes(path)
        except PermissionError:
            return True
        except (OSError, ValueError):
            return False
        return False
