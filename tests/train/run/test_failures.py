"""Tests of the reasons for which training stops."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from resdeploy.errors import TrainingError
from resdeploy.train.run.failures import explain_failure, explained_failures
from resdeploy.train.run.folder import RunPosition

# Texts of PyTorch 2.13, as found in its errors or its source.
SHM = (
    "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
    'last):\n  File "x.py", line 1\nRuntimeError: unable to allocate shared memory(shm) for file '
    "</torch_23016_4010381211_0>: No space left on device (28)\n"
)
BUS = (
    "DataLoader worker (pid 5) is killed by signal: Bus error. It is possible that dataloader's "
    "workers are out of shared memory. Please try to raise your shared memory limit."
)
CAUGHT = (
    "Caught ZeroDivisionError in DataLoader worker process 3.\nOriginal Traceback (most recent "
    'call last):\n  File "x.py", line 1\n    1 / 0\nZeroDivisionError: division by zero\n'
)
GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection closed by peer [::1]"


@pytest.mark.parametrize(
    ("text", "reason", "hint"),
    [
        (SHM, "ran out of shared memory", "R --workers 1, or enlarge"),
        (BUS, "ran out of shared memory", "--shm-size"),
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", "7, .* killed", "--workers 1"),
        ("DataLoader worker (pid 7) is killed by signal: Segmentation fault. ", "7.*fault$", "R"),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", "7, 8, .* unexpectedly", "R"),
        (CAUGHT, "failed: ZeroDivisionError: division by zero$", "R --workers 0"),
        ("DataLoader timed out after 5 seconds", "no batch .* 600 seconds", "storage"),
        ("Too many open files. Communication with", "too many files are open", "ulimit -n"),
        (GLOO, "connection to another training process was lost", "stopped first"),
        ("CUDA out of memory. Tried to allocate 2 GiB.", "memory of the GPU", "--batch-size"),
        ("DefaultCPUAllocator: can't allocate memory: you tried", "memory", "--accumulate"),
    ],
)  # fmt: skip
def test_errors_of_pytorch_are_explained(text: str, reason: str, hint: str) -> None:
    error = explain_failure(RuntimeError(text), "R")
    assert error is not None
    with pytest.raises(TrainingError, match=f"(?m){reason}"):  # notes follow
        raise error
    assert hint in str(error.hint)
    assert "\n" not in str(error)


def test_a_lost_pipe_to_a_worker_is_not_a_lost_training_process() -> None:
    error = explain_failure(ConnectionResetError(104, "Connection reset by peer"), "R")
    assert str(error).startswith("a process that decoded images was killed")
    assert error is not None
    assert error.hint == "to continue with fewer: R --workers 1"


@pytest.mark.parametrize(
    "text",
    [
        "mat1 and mat2 shapes cannot be multiplied",
        "out of resource: shared memory, Required: 131072, Hardware limit: 101376",  # of the GPU
    ],
)
def test_other_errors_are_not_explained(text: str) -> None:
    with (
        pytest.raises(RuntimeError, match=text) as caught,
        explained_failures(Path("run"), RunPosition, print),
    ):
        raise RuntimeError(text)
    assert type(caught.value) is RuntimeError


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
def test_too_little_memory_is_explained(error: Exception) -> None:
    with (
        pytest.raises(TrainingError, match="is too small"),
        explained_failures(Path("run"), RunPosition, print),
    ):
        raise error
