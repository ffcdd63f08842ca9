"""Tests of the PyTorch worker on the CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from benchmarks.gpu.pytorch_worker import (
    MODES,
    PyTorchBackend,
    check_pytorch,
    make_forward,
    prepare,
)
from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.errors import BackendError, CheckpointError
from resdeploy.runtime.backends.onnxruntime.cpu import OnnxRuntimeCpu
from resdeploy.train.bench.pytorch_worker import RANDOM
from tests.samples import SIZE, make_classifier

# Relative to the largest logit. The order of sums differs between kernels, and float16 and
# bfloat16 round a dozen layers to 11 and 8 bits.
TOLERANCE = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 8e-2}
EAGER = [name for name, mode in MODES.items() if not mode.compiled]


@pytest.fixture(autouse=True)
def _restore_settings() -> Iterator[None]:
    # More threads would slow such a small network down. conftest.py restores the number.
    torch.set_num_threads(1)
    before = torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.benchmark = before


def start(
    bundle: Bundle, checkpoint: str, mode: str = "eager-fp32", batch: int = 5
) -> tuple[PyTorchBackend, Callable[[], object], dict[str, Any]]:
    run, facts = prepare(str(bundle.path), checkpoint, mode, batch, "", device="cpu")
    return cast("PyTorchBackend", cast("Any", run).__self__), run, facts


def expected(bundle: Bundle, count: int) -> Float32Array:
    artifact = bundle.artifact("fp32")
    backend = OnnxRuntimeCpu(bundle.read(artifact.file), artifact.encoding, 1)
    return backend.run(bundle.golden().images[:count])


@pytest.mark.parametrize("mode", EAGER)
def test_logits_are_close_to_those_of_the_onnx_graph(
    tiny_bundle: Bundle, tiny_checkpoint: Path, mode: str
) -> None:
    backend, run, facts = start(tiny_bundle, str(tiny_checkpoint), mode)
    assert facts["answers"]["golden"]["passed"] is True
    assert facts["cuda_graphs"] == "no"
    run()
    wanted = expected(tiny_bundle, 5)
    logits = backend.run(tiny_bundle.golden().images[:5])
    assert logits.dtype == np.float32
    atol = TOLERANCE[MODES[mode].precision] * np.abs(wanted).max()
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=atol)


def test_logits_are_not_overwritten_by_the_next_batch(
    tiny_bundle: Bundle, tiny_checkpoint: Path
) -> None:
    backend, _, _ = start(tiny_bundle, str(tiny_checkpoint))
    images = tiny_bundle.golden().images
    first = backend.run(images[:5])
    kept = first.copy()
    backend.run(images[5:10])
    np.testing.assert_array_equal(first, kept)


def test_golden_images_repeat_in_a_large_batch(tiny_bundle: Bundle, tiny_checkpoint: Path) -> None:
    _, run, _ = start(tiny_bundle, str(tiny_checkpoint), batch=40)
    run()


def test_float16_uses_channels_last(tiny_bundle: Bundle) -> None:
    channels_last: list[bool] = []
    classifier = make_classifier()

    def record_format(module: torch.nn.Module, inputs: Any) -> None:
        channels_last.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    for module in classifier.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(record_format)
    forward = make_forward(classifier, MODES["eager-fp16"], "cpu")
    logits = forward(torch.zeros((2, SIZE, SIZE, 3), dtype=torch.uint8))
    assert logits.dtype is torch.float32
    assert len(channels_last) == 12
    assert all(channels_last)


def test_random_weights_are_not_checked(tiny_bundle: Bundle) -> None:
    _, run, facts = start(tiny_bundle, RANDOM)
    assert facts["answers"] is None
    run()


def test_rejects_a_checkpoint_of_another_network(tiny_bundle: Bundle, tmp_path: Path) -> None:
    other = dataclasses.replace(make_classifier().network.architecture, classes=5)
    torch.save(make_classifier(other).network.state_dict(), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="with 5 classes, but the bundle"):
        start(tiny_bundle, str(tmp_path / "other.pth"))


def test_an_error_of_pytorch_becomes_one_line(
    tiny_bundle: Bundle, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> None:
        raise ValueError("no compiler\nand much more")

    monkeypatch.setattr("benchmarks.gpu.pytorch_worker.make_forward", fails)
    with pytest.raises(BackendError, match=r"(?m)^PyTorch failed: no compiler$"):
        start(tiny_bundle, str(tiny_checkpoint))


def test_raises_without_a_gpu(
    tiny_bundle: Bundle, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="sees no GPU"):
        check_pytorch("cuda")
    with pytest.raises(BackendError, match="sees no GPU"):
        prepare(str(tiny_bundle.path), str(tiny_checkpoint), "eager-fp32", 1, "")
