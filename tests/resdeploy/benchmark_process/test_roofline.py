"""Tests of the roofline model."""

from __future__ import annotations

import pytest

from resdeploy.benchmark_process.roofline import (
    Ceilings,
    Roofline,
    arithmetic_of,
    operations_per_byte,
    roofline,
)
from resdeploy.bundle.operation_counts import LayerWork, Work, WorkTotals
from resdeploy.json_documents import parse

WORK = Work(
    layers=(
        LayerWork(name="conv1", macs=900, weights=60, activations=30),
        LayerWork(name="fc", macs=100, weights=40, activations=20),
    )
)
TOTALS = WORK.totals
CEILINGS = Ceilings(operations_per_second={"fp32": 1e6, "fp16": 4e6}, bytes_per_second=1e5)


def test_a_network_is_the_sum_of_its_layers() -> None:
    assert WorkTotals(macs=1000, weights=100, activations=50) == TOTALS
    assert TOTALS.operations(8) == 16_000


@pytest.mark.parametrize("missing", ["name", "macs", "weights", "activations"])
def test_rejects_damaged_work(missing: str) -> None:
    document = WORK.to_json()
    del document["layers"][1][missing]
    with pytest.raises(ValueError, match=f"has no {missing}"):
        parse(Work, document)


def test_rejects_a_layer_without_work() -> None:
    document = WORK.to_json()
    document["layers"][0]["macs"] = -5
    with pytest.raises(ValueError, match="macs is -5; at least 1"):
        parse(Work, document)


@pytest.mark.parametrize(
    ("precision", "size"), [("fp32", 4), ("fp16", 2), ("bf16", 2), ("int8", 1)]
)
def test_weights_count_once_per_batch_and_activations_once_per_image(
    precision: str, size: int
) -> None:
    assert TOTALS.bytes(1, precision) == size * 150
    assert TOTALS.bytes(8, precision) == size * 500


def test_the_longer_of_compute_and_memory_time_is_the_bound() -> None:
    # At batch 1, 2000 operations take 2 ms and 600 bytes take 6 ms.
    assert roofline(TOTALS, CEILINGS, "fp32", 1) == Roofline(ms=6.0, bound="memory")
    # At batch 256, 512000 operations take 512 ms and 51600 bytes take 516 ms.
    assert roofline(TOTALS, CEILINGS, "fp32", 256) == Roofline(ms=516.0, bound="memory")
    faster = Ceilings(operations_per_second={"fp32": 1e6}, bytes_per_second=1e6)
    assert roofline(TOTALS, faster, "fp32", 1) == Roofline(ms=2.0, bound="compute")


def test_without_a_measured_ceiling_there_is_no_roofline() -> None:
    assert roofline(TOTALS, CEILINGS, "int8", 1) is None
    assert roofline(TOTALS, None, "fp32", 1) is None
    assert roofline(None, CEILINGS, "fp32", 1) is None
    no_copy = Ceilings(operations_per_second={"fp32": 1e6}, bytes_per_second=None)
    assert roofline(TOTALS, no_copy, "fp32", 1) is None


def test_float16_is_computed_in_float32_on_a_cpu() -> None:
    assert arithmetic_of("fp16", CEILINGS) == "fp32"
    gpu = Ceilings(operations_per_second={"tf32": 1e6}, bytes_per_second=1e6)
    assert [arithmetic_of(precision, gpu) for precision in ("fp32", "fp16")] == ["tf32", "fp16"]
    assert operations_per_byte(TOTALS, 8, "fp32") == 16_000 / 2000
