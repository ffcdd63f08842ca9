"""PyTorch's compiler, where it can work.

Sources: PyTorch's documentation of `torch.compile` (its kernels are written in Triton for a GPU,
and a C compiler builds what calls them) and of CUDAGraph Trees (what replays them).
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

OLDEST_GPU = (7, 0)  # that Triton knows


def compile_obstacle(device: torch.device) -> str | None:
    """Why `torch.compile` cannot be used on this device; None where it can."""
    if not (os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang")))):
        return "there is no C compiler"
    # It builds a module for Python: on Debian the headers are a package of their own.
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return f"the headers of Python {sys.version_info[0]}.{sys.version_info[1]} are not here"
    if device.type != "cuda":
        return None
    if find_spec("triton") is None:
        return "Triton is not installed"
    if torch.cuda.get_device_capability(device) < OLDEST_GPU:
        return "this GPU is older than Triton knows"
    return None


def compiles(asked: bool | None, device: torch.device) -> bool:
    """Whether to compile: as asked, otherwise on a GPU where it is possible.

    Raises:
        TrainingError: it was asked for, and cannot be.
    """
    if asked is False or (asked is None and device.type != "cuda"):
        return False
    obstacle = compile_obstacle(device)
    if asked and obstacle:
        raise TrainingError(f"--compile cannot be done: {obstacle}", "leave it out")
    return obstacle is None


def compile_mode(device: torch.device, shares: int) -> str:
    """How a step's work reaches the device.

    A GPU computes a step of ResNet-34 in half the time that it takes to launch its 600 kernels one
    by one. As CUDA graphs they are recorded once and then launched together. Their results lie
    where those of the next run will: gradients that have to outlive it would be lost.

    Args:
        device: What computes.
        shares: Into how many a batch is divided, over processes and parts.
    """
    return "reduce-overhead" if device.type == "cuda" and shares == 1 else "default"
