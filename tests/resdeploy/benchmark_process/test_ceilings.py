"""Tests of the ceilings, with one real process of each worker."""

from __future__ import annotations

import numpy as np
import pytest

from resdeploy.benchmark_process import ceilings
from resdeploy.benchmark_process.ceilings import (
    COPY,
    UNIT,
    Probe,
    best_ceilings,
    fastest_probe,
    probe_timer,
)
from resdeploy.benchmark_process.roofline import Ceilings
from resdeploy.benchmark_process.worker_process import Contender, Worker
from tests.virtual_time import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(ceilings, "time", clock)
    return clock


def test_the_fastest_shape_has_the_highest_rate(clock: Clock) -> None:
    slow = Probe(kind="fp32", amount=10, run=lambda: clock.sleep(0.002))
    fast = Probe(kind="fp32", amount=1000, run=lambda: clock.sleep(0.004))
    assert fastest_probe([slow, fast]) is fast


def test_each_arithmetic_has_its_own_time(clock: Clock) -> None:
    run = probe_timer(
        [
            Probe(kind="int8", amount=UNIT // 10, run=lambda: clock.sleep(0.002)),
            Probe(kind=COPY, amount=UNIT, run=lambda: clock.sleep(0.001)),
        ]
    )
    times = run()
    assert times["int8"] == pytest.approx(20e6)  # ten calls make a unit
    assert times["copy"] == pytest.approx(1e6)


def test_the_ceiling_is_the_fastest_library_by_the_median_over_rounds() -> None:
    first = {"fp32": [np.array([1.0, 1.0, 9.0]), np.array([2.0]), np.array([2.0])]}
    second = {"fp32": [np.array([4.0])], "int8": [np.array([1.0])], "copy": [np.array([5.0])]}
    assert best_ceilings([first, second]) == Ceilings(
        operations_per_second={"fp32": UNIT / 2e-3, "int8": UNIT / 1e-3},
        bytes_per_second=UNIT / 5e-3,
    )
    assert best_ceilings([]) is None


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_each_product_is_a_graph_with_one_node(kind: str) -> None:
    onnx = pytest.importorskip("onnx")
    from resdeploy.runtime.bench.onnxruntime_ceilings import read_product

    types, node = {
        "fp32": (("float", "float", "float"), "MatMul"),
        "int8": (("uint8", "int8", "int32"), "MatMulInteger"),
    }[kind]
    left, right, result = types
    text = f"""<ir_version: 8, opset_import: ["": 13]>
    product ({left}[m, k] left, {right}[k, n] right) => ({result}[m, n] result)
    {{ result = {node}(left, right) }}"""
    assert onnx.load_from_string(read_product(kind)) == onnx.parser.parse_model(text)


@pytest.mark.parametrize("worker", [Worker.RUNTIME_CEILINGS, Worker.PYTORCH_CEILINGS])
def test_a_worker_measures_every_arithmetic(worker: Worker) -> None:
    if worker is Worker.PYTORCH_CEILINGS:
        pytest.importorskip("torch")
    contender = Contender.start("ceilings", worker, ["1"], threads=1)
    contender.run_for(0.0)
    contender.stop()
    found = best_ceilings([contender.stages])
    assert found is not None
    assert {"fp32", "int8"} <= found.operations_per_second.keys()
    assert found.bytes_per_second is not None
    # Machines reach 1e10 and more, but not 1e15. A busy machine is slower, so the lower bound only
    # detects a wrong unit: nanoseconds instead of seconds would give 1e9 times less.
    assert 1e4 < found.bytes_per_second < 1e13
    assert all(1e4 < speed < 1e15 for speed in found.operations_per_second.values())
