"""The bound that follows from work and ceilings."""

from __future__ import annotations

import pytest

from resdeploy.bench.roofline import Ceilings, Roofline, roofline
from resdeploy.bundle.work import LayerWork, Work
from resdeploy.documents import parse

WORK = Work(
    layers=(
        LayerWork(name="conv1", macs=900, weights=60, activations=30),
        LayerWork(name="fc", macs=100, weights=40, activations=20),
    )
)
CEILINGS = Ceilings(operations_per_second={"fp32": 1e6, "fp16": 4e6}, bytes_per_second=1e5)


def test_a_network_is_the_sum_of_its_layers() -> None:
    assert WORK.totals() == {"macs": 1000, "weights": 100, "activations": 50}
    assert WORK.operations(8) == 16_000


@pytest.mark.parametrize("missing", ["name", "macs", "weights", "activations"])
def test_damaged_work_is_refused(missing: str) -> None:
    document = WORK.to_json()
    del document["layers"][1][missing]
    with pytest.raises(ValueError, match=f"has no {missing}"):
        parse(Work, document)


def test_a_layer_does_something() -> None:
    document = WORK.to_json()
    document["layers"][0]["macs"] = -5
    with pytest.raises(ValueError, match="macs is -5; at least 1"):
        parse(Work, document)


@pytest.mark.parametrize(
    ("precision", "size"), [("fp32", 4), ("fp16", 2), ("bf16", 2), ("int8", 1)]
)
def test_weights_move_once_a_batch_and_activations_once_an_image(precision: str, size: int) -> None:
    assert WORK.bytes(1, precision) == size * 150
    assert WORK.bytes(8, precision) == size * 500


def test_the_slower_of_computing_and_moving_decides() -> None:
    # At batch 1, 2000 operations take 2 ms and 600 bytes take 6 ms.
    assert roofline(WORK, CEILINGS, "fp32", 1) == Roofline(ms=6.0, bound="memory")
    # At batch 256, 512000 operations take 512 ms and 51600 bytes take 516 ms.
    assert roofline(WORK, CEILINGS, "fp32", 256) == Roofline(ms=516.0, bound="memory")
    faster = Ceilings(operations_per_second={"fp32": 1e6}, bytes_per_second=1e6)
    assert roofline(WORK, faster, "fp32", 1) == Roofline(ms=2.0, bound="compute")


def test_without_a_measured_ceiling_there_is_no_bound() -> None:
    assert roofline(WORK, CEILINGS, "int8", 1) is None
    assert roofline(WORK, None, "fp32", 1) is None
    assert roofline(None, CEILINGS, "fp32", 1) is None
    no_copy = Ceilings(operations_per_second={"fp32": 1e6}, bytes_per_second=None)
    assert roofline(WORK, no_copy, "fp32", 1) is None
