"""Where a result came from: versions, command, commit, date."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import resdeploy

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
