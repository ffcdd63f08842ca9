"""The decision whether and how to compile a training step with `torch.compile`.

Sources: PyTorch's documentation of `torch.compile` (GPU kernels need Triton, and their launchers
need a C compiler) and of CUDAGraph Trees (how recorded kernels are replayed).
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import torch

from resdeploy.errors import TrainingError

MIN_COMPUTE_CAPABILITY = (7, 0)  # of Triton


def compile_obstacle(device: torch.device) -> str | None:
    """Return the reason why `torch.compile` cannot be used on `device`, or None if it can."""
    if not (os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang")))):
        return "no C compiler is installed"
    # The compiler builds a Python extension; Debian packages the headers separately.
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        return f"the headers of Python {version} are not installed"
    if device.type != "cuda":
        return None
    if find_spec("triton") is None:
        return "Triton is not installed"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_COMPUTE_CAPABILITY:
        found, least = (".".join(map(str, pair)) for pair in (capability, MIN_COMPUTE_CAPABILITY))
        return f"this GPU has compute capability {found}, and Triton needs {least}"
    return None


def should_compile(requested: bool | None, device: torch.device) -> bool:
    """Return `requested`; for None, return True on a GPU for which compiling is possible.

    Raises:
        TrainingError: Compiling was requested, but is not possible.
    """
    if requested is False or (requested is None and device.type != "cuda"):
        return False
    obstacle = compile_obstacle(device)
    if requested and obstacle:
        raise TrainingError(f"--compile is not possible: {obstacle}", "remove --compile")
    return obstacle is None


def compile_mode(device: torch.device, shares: int) -> str:
    """Return the `mode` for `torch.compile`.

    Launching the 600 kernels of a step of ResNet-34 one by one takes twice as long as computing
    them, so they are recorded once as CUDA graphs and launched together. Each replay overwrites the
    memory of the previous one, so gradients cannot be accumulated or exchanged: `shares`, the
    number of processes times the number of accumulated parts, must be 1.
    """
    return "reduce-overhead" if device.type == "cuda" and shares == 1 else "default"
