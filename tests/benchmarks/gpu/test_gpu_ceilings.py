"""Tests of the ceilings of a GPU, run on the CPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu.gpu_ceilings import MIN_SAMPLES, fastest_run, measure_gpu_ceilings
from resdeploy.benchmark_process.ceilings import CALLS, Probe
from resdeploy.errors import BackendError


def test_measures_every_product_and_the_copy() -> None:
    measured = measure_gpu_ceilings("cpu", matrix=32, copy_bytes=4096, seconds=0.0)
    assert set(measured["operations_per_second"]) == {"fp32", "tf32", "fp16", "bf16", "int8"}
    assert measured["bytes_per_second"] > 0
    assert measured["missing"] == []
    assert torch.get_float32_matmul_precision() == "highest"  # as it was


def test_reports_a_product_that_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise RuntimeError("not on this GPU\nat some line")

    monkeypatch.setattr(torch.ops.aten, "_int_mm", fails)
    measured = measure_gpu_ceilings("cpu", matrix=32, copy_bytes=4096, seconds=0.0)
    assert measured["missing"] == [{"what": "ceiling of int8", "why": "not on this GPU"}]
    assert "int8" not in measured["operations_per_second"]
    assert measured["operations_per_second"]["fp16"] > 0


def test_raises_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="sees no GPU"):
        measure_gpu_ceilings()


def test_zero_seconds_give_the_least_number_of_samples() -> None:
    calls: list[str] = []
    probe = Probe(kind="fp32", amount=1, run=lambda: calls.append("run"))
    assert fastest_run(probe, 0.0) > 0
    assert len(calls) == 1 + MIN_SAMPLES * CALLS
