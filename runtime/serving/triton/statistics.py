"""The statistics of a model, as Triton's clients read them.

Source: https://github.com/triton-inference-server/server/blob/02c5c95/docs/protocol/extension_statistics.md.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from resdeploy.runtime.serving.batching.interface import BatchRecord

# The server has no cache and does not time the writing of answers: their counts stay 0.
DURATIONS = (
    "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit",
    "cache_miss",
)  # fmt: skip
NANOSECONDS = 1_000_000_000  # in one second


class ModelTotals:
    """Totals of one model since the start of the server; only its event loop may call these."""

    def __init__(self) -> None:
        self._images = self._last_inference = 0
        # By name of a duration, or by size of a batch in images.
        self._counts: Counter[str | int] = Counter()
        self._nanoseconds: Counter[str | int] = Counter()

    def add(self, key: str | int, seconds: float, count: int = 1) -> None:
        """Add `count` events that took `seconds` together to a duration or a size of batches."""
        self._counts[key] += count
        self._nanoseconds[key] += round(NANOSECONDS * seconds)

    def count_batch(self, record: BatchRecord) -> None:
        """Count a batch; like Triton, count all of its time for each of its requests."""
        self._images += record.images
        self._last_inference = time.time_ns() // 1_000_000
        requests = len(record.queue_seconds)
        self.add("queue", sum(record.queue_seconds), requests)
        self.add("compute_infer", requests * record.inference_seconds, requests)
        self.add(record.images, record.inference_seconds)

    def statistics(self, name: str, version: str) -> dict[str, Any]:
        """Return the protocol's document for the model with this name and version."""
        sizes = sorted(key for key in self._counts if isinstance(key, int))
        return {
            "name": name,
            "version": version,
            "last_inference": self._last_inference,
            "inference_count": self._images,
            "execution_count": sum(self._counts[size] for size in sizes),
            "inference_stats": {name: self._duration(name) for name in DURATIONS},
            "batch_stats": [
                {"batch_size": size, "compute_infer": self._duration(size)} for size in sizes
            ],
        }

    def _duration(self, key: str | int) -> dict[str, int]:
        return {"count": self._counts[key], "ns": self._nanoseconds[key]}
