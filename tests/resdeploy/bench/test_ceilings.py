"""Ceilings as contenders: their arithmetic, the products timed, one real process of each."""

from __future__ import annotations

import numpy as np
import pytest

from resdeploy.bench import ceilings
from resdeploy.bench.ceilings import COPY, UNIT, Probe, best_of, ceilings_of, measure_beside
from resdeploy.bench.process import Contender, Worker
from resdeploy.bench.roofline import Ceilings
from tests.virtual_time import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(ceilings, "time", clock)
    return clock


def test_the_best_shape_does_most_a_second(clock: Clock) -> None:
    slow = Probe(kind="fp32", amount=10, run=lambda: clock.sleep(0.002))
    fast = Probe(kind="fp32", amount=1000, run=lambda: clock.sleep(0.004))
    assert best_of([slow, fast]) is fast


def test_each_kind_is_timed_apart(clock: Clock) -> None:
    run = measure_beside(
        [
            Probe(kind="int8", amount=UNIT // 10, run=lambda: clock.sleep(0.002)),
            Probe(kind=COPY, amount=UNIT, run=lambda: clock.sleep(0.001)),
        ]
    )
    times = run()
    assert times["int8"] == pytest.approx(20e6)  # ten of those would make a unit
    assert times["copy"] == pytest.approx(1e6)


def test_the_best_library_is_the_ceiling_by_the_median_of_its_rounds() -> None:
    one = {"fp32": [np.array([1.0, 1.0, 9.0]), np.array([2.0]), np.array([2.0])]}
    other = {"fp32": [np.array([4.0])], "int8": [np.array([1.0])], "copy": [np.array([5.0])]}
    assert ceilings_of([one, other]) == Ceilings(
        operations_per_second={"fp32": UNIT / 2e-3, "int8": UNIT / 1e-3},
        bytes_per_second=UNIT / 5e-3,
    )
    assert ceilings_of([]) is None


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_the_products_are_one_node_each(kind: str) -> None:
    onnx = pytest.importorskip("onnx")
    from resdeploy.runtime.bench.ceilings import read_product

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
def test_a_process_measures_every_kind(worker: Worker) -> None:
    if worker is Worker.PYTORCH_CEILINGS:
        pytest.importorskip("torch")
    contender = Contender.start("ceilings", worker, ["1"], threads=1)
    contender.run_for(0.0)
    contender.stop()
    found = ceilings_of([contender.stages])
    assert found is not None
    assert {"fp32", "int8"} <= found.operations_per_second.keys()
    assert found.bytes_per_second is not None
    # Machines do 1e10 and more, and none 1e15. Those that are busy do less, so that the lower bound
    # only tells units apart: nanoseconds for seconds would be a billion times less.
    assert 1e4 < found.bytes_per_second < 1e13
    assert all(1e4 < speed < 1e15 for speed in found.operations_per_second.values())
