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
    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "git_commit": _git_commit(),
        "versions": installed_versions(),
        "platform": platform.platform(),
        "device": device,
    }


def _git_commit() -> str | None:
    """The commit of the user's own checkout, if the working folder is one."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
