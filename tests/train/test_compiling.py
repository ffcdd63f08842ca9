"""Tests of the choice of `torch.compile`, and of a compiled step."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from resdeploy.errors import TrainingError
from resdeploy.train import compiling
from resdeploy.train.compiling import compile_mode, compile_obstacle, should_compile
from resdeploy.train.config import TrainingConfig
from tests.samples import SIZE
from tests.train.learners import make_batch, make_learner

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def complete_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Simulate a machine with an H100 and everything that the compiler needs."""
    (tmp_path / "Python.h").touch()
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr(compiling, "find_spec", lambda name: SimpleNamespace(name=name))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


@pytest.mark.usefixtures("complete_machine")
def test_compiling_is_the_default_only_on_gpus() -> None:
    assert should_compile(None, GPU)
    assert should_compile(True, CPU)
    assert not should_compile(None, CPU)
    assert not should_compile(False, GPU)


def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC")
    monkeypatch.setattr(shutil, "which", lambda name: None)


def no_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": "nowhere"})


def no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "find_spec", lambda name: None)


def old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))


@pytest.mark.usefixtures("complete_machine")
@pytest.mark.parametrize(
    ("remove", "reason", "on_a_cpu"),
    [
        (no_compiler, "no C compiler is installed", True),
        (no_headers, "the headers of Python", True),
        (no_triton, "Triton is not installed", False),
        (old_gpu, r"compute capability 6\.1, and Triton needs 7\.0", False),
    ],
)
def test_a_requested_compilation_names_what_is_missing(
    remove: Callable[[pytest.MonkeyPatch], None],
    reason: str,
    on_a_cpu: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remove(monkeypatch)
    assert (compile_obstacle(CPU) is not None) == on_a_cpu
    assert not should_compile(None, GPU)
    with pytest.raises(TrainingError, match=f"--compile is not possible: .*{reason}"):
        should_compile(True, GPU)


def test_cuda_graphs_are_used_if_no_gradients_are_kept() -> None:
    assert compile_mode(GPU, shares=1) == "reduce-overhead"
    assert compile_mode(GPU, shares=2) == "default"
    assert compile_mode(CPU, shares=1) == "default"


def step(config: TrainingConfig) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    learner = make_learner(config)
    loss = learner.step(make_batch(8), 0.1, np.random.default_rng(0))
    return loss, learner.state()["model"]


@pytest.mark.usefixtures("complete_machine")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own tracing causes some
def test_a_compiled_step_gives_identical_weights(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trace the step without generating kernels, so that the results must be bit-identical."""
    traced: list[object] = []
    original_compile: Any = torch.compile

    def without_kernels(model: torch.nn.Module, *, mode: str) -> Any:
        assert mode == "default"  # the mode for CPUs
        traced.append(model)
        return original_compile(model, backend="eager")

    monkeypatch.setattr(torch, "compile", without_kernels)
    settings: dict[str, Any] = {
        "data": "none", "init": str(tiny_checkpoint), "image_size": SIZE, "batch_size": 8,
        "bf16": False, "ema": 0.9,
    }  # fmt: skip
    plain_loss, plain = step(TrainingConfig(**settings, compile=False))
    assert not traced
    loss, weights = step(TrainingConfig(**settings, compile=True))
    assert len(traced) == 1
    assert torch.equal(loss, plain_loss)
    assert weights.keys() == plain.keys()  # compiling must not change the saved names
    for name, tensor in weights.items():
        assert torch.equal(tensor, plain[name]), name
