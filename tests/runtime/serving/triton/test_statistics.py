"""The totals of a model, which Triton's clients read."""

from __future__ import annotations

from resdeploy.runtime.serving.batching.interface import BatchRecord
from resdeploy.runtime.serving.triton.statistics import DURATIONS, ModelTotals


def test_totals_are_counted_for_requests_and_for_batches() -> None:
    totals = ModelTotals()
    empty = totals.statistics("tiny", "1")
    assert empty["inference_stats"] == {name: {"count": 0, "ns": 0} for name in DURATIONS}
    assert (empty["last_inference"], empty["batch_stats"]) == (0, [])
    record = BatchRecord(images=3, queue_seconds=(0.25, 0.5), inference_seconds=2.0)
    totals.count_batch(record)
    totals.count_batch(BatchRecord(images=1, queue_seconds=(0.0,), inference_seconds=1.0))
    totals.add("success", 0.5)
    found = totals.statistics("tiny", "1")
    assert (found["inference_count"], found["execution_count"]) == (4, 2)
    stats = found["inference_stats"]
    assert stats["success"] == {"count": 1, "ns": 500_000_000}
    assert stats["queue"] == {"count": 3, "ns": 750_000_000}
    assert stats["compute_infer"] == {"count": 3, "ns": 5_000_000_000}  # both wait for all of it
    assert found["batch_stats"] == [
        {"batch_size": 1, "compute_infer": {"count": 1, "ns": 1_000_000_000}},
        {"batch_size": 3, "compute_infer": {"count": 1, "ns": 2_000_000_000}},
    ]
    assert found["last_inference"] > 0
