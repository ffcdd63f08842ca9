"""The provenance of a result: versions, command, commit, date and machine."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import resdeploy
from resdeploy.images.preprocessing import ImageSize
from resdeploy.machine.device import Device, read_device

PACKAGES = (
    "torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu", "openvino",
    "tensorrt", "tensorrt-rtx-cu13", "numpy", "pillow", "click", "safetensors", "scikit-learn",
)  # fmt: skip
EnvironmentType = TypeVar("EnvironmentType", bound="Environment")


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The provenance of a result, with the machine and the model."""

    date: str
    """Date and time in ISO 8601 format."""
    command: str
    git_commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    """Versions by package."""
    platform: str = ""
    """The operating system."""
    device: Device = field(default_factory=Device)
    model: str | None = None
    image_size: ImageSize | None = None
    """Side of the network's square input, or its height and width, in pixels."""
    bundle: str | None = None

    @classmethod
    def collect(
        cls: type[EnvironmentType], device: Device | None = None, **facts: Any
    ) -> EnvironmentType:
        """Return the environment of a result that is made now.

        Args:
            device: This machine; None to read it.
            **facts: The fields that describe the model or are added by a subclass.
        """
        return cls(**{**collect_provenance(None), "device": device or read_device(), **facts})


def collect_provenance(device: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the provenance of a result that is made now; `device` is in JSON form."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command_line(),
        "git_commit": _git_commit(),
        "versions": installed_versions(),
        "platform": platform.platform(),
        "device": device,
    }


def installed_versions() -> dict[str, str]:
    """Return the versions of Python, resdeploy and the installed packages in `PACKAGES`."""
    from importlib import metadata  # it takes 10 ms, and most commands write no provenance

    versions = {"python": platform.python_version(), "resdeploy": resdeploy.__version__}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def command_line() -> str:
    """Return the command that started this process, without the folders of absolute paths."""
    # With `python -m`, only `sys.orig_argv` holds the name of the module: `-m NAME` stands before
    # the arguments, which are the same in both lists.
    before_arguments = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    is_module = before_arguments[-2:-1] == ["-m"]
    program = ["python", *before_arguments[-2:]] if is_module else [Path(sys.argv[0]).name]
    return shlex.join([*program, *map(without_folders, sys.argv[1:])])


def shown_path(path: Path) -> str:
    """Return a path for a result, which may be published: below the working folder, or the name.

    Links are followed, because `runs/latest` leads elsewhere later.
    """
    resolved, folder = path.resolve(), Path.cwd().resolve()
    inside = resolved != folder and resolved.is_relative_to(folder)
    return str(resolved.relative_to(folder)) if inside else resolved.name


def without_folders(argument: str) -> str:
    """Return an argument, or the value of a setting, without the folders of an absolute path."""
    option, equals, value = argument.rpartition("=")  # --output=/tmp/a
    return option + equals + shown_path(Path(value)) if value.startswith("/") else argument


def _git_commit() -> str | None:
    """Return the commit of the working folder; None if it is no Git checkout."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
