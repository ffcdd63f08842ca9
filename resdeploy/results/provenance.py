"""Where a result came from: versions, command, commit, date."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import resdeploy
from resdeploy.documents import parse
from resdeploy.machine.conditions import Conditions
from resdeploy.machine.device import read_device
from resdeploy.machine.jetson import Jetson
from resdeploy.machine.nvml import Gpu

PACKAGES = (
    "torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu", "openvino",
    "tensorrt", "tensorrt-rtx-cu13", "numpy", "pillow", "click", "safetensors", "scikit-learn",
)  # fmt: skip


def installed_versions() -> dict[str, str]:
    """Versions of Python, resdeploy and those of `PACKAGES` that are installed."""
    versions = {"python": platform.python_version(), "resdeploy": resdeploy.__version__}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def collect_provenance(device: Mapping[str, Any] | None) -> dict[str, Any]:
    """What made a result, now: JSON-ready; `device` is the machine, as `runtime.device` tells."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command_line(),
        "git_commit": _git_commit(),
        "versions": installed_versions(),
        "platform": platform.platform(),
        "device": device,
    }


def command_line() -> str:
    """What was typed to start this process, without the places of Python and of a script."""
    started = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    # Of `python -m`, `sys.argv` has the module's file.
    is_module = started[-2:-1] == ["-m"]
    name = ["python", *started[-2:]] if is_module else [Path(sys.argv[0]).name]
    return shlex.join([*name, *sys.argv[1:]])


def _git_commit() -> str | None:
    """The commit of the user's own checkout, if the working folder is one."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The form that `Device.to_json` has."""

    architecture: str | None = None
    cpu: str | None = None
    cpu_features: tuple[str, ...] = ()
    cores: int | None = None
    memory_bytes: int | None = None
    gpus: tuple[Gpu, ...] = ()
    jetson: Jetson | None = None
    container: str | None = None
    cuda: str | None = None
    tensorrt: str | None = None
    conditions: Conditions = field(default_factory=Conditions)

    @property
    def name(self) -> str:
        """What decides how fast it is: the board, or processor, cores and GPUs."""
        if self.jetson:
            return self.jetson.board
        cores = () if self.cores is None else (f"{self.cores} cores",)
        processor = self.cpu or self.architecture or "unknown machine"
        return ", ".join((processor, *cores, *(gpu.name for gpu in self.gpus)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What `collect_provenance` collects, the machine, and what was run."""

    date: str
    """ISO 8601."""
    command: str
    git_commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    platform: str = ""
    device: Machine = field(default_factory=Machine)
    model: str | None = None
    image_size: int | None = None
    bundle: str | None = None
    mode: str | None = None
    """Of a benchmark: `stream`, `offline`, `end-to-end`."""


def here(**what: Any) -> Environment:
    """This machine, now; `what` fills the fields that it cannot tell."""
    return parse(Environment, collect_provenance(read_device().to_json()) | what)
