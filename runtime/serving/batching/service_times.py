"""Inference times of an engine: measured before it serves, corrected while it serves."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Mapping

import numpy as np

from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.backends.base import Backend

# Time to pass a batch of any size to a thread and its logits back (benchmarks/serving/__main__.py).
HANDOVER_SECONDS = 0.0005
# A larger batch must give this many times the throughput to justify its latency.
MIN_GAIN = 1.05
# Weight of the newest batch in the moving slowdown.
SMOOTHING = 0.2
# The limit keeps one stall from causing rejections for minutes.
MAX_SLOWDOWN = 20.0
REPEATS = 3
REPEAT_SECONDS = 0.1


class ServiceTimes:
    """Measured seconds per batch size, and the current slowdown against them."""

    def __init__(self, seconds: Mapping[int, float]) -> None:
        """Store the seconds measured for each batch size on an otherwise idle machine."""
        self.seconds = seconds
        self._sizes = sorted(seconds)
        self._seconds = [max(seconds[size], 1e-6) for size in self._sizes]
        self._slowdown = 1.0
        self.best_batch = _smallest_worthwhile(self._sizes, self._seconds)
        """Smallest batch size whose throughput is within 5 % of the maximum."""

    def measured(self, images: int) -> float:
        """Return the seconds of a batch on an otherwise idle machine."""
        index = bisect_left(self._sizes, images)
        if index == len(self._sizes):
            return self._seconds[-1] * images / self._sizes[-1]
        if self._sizes[index] == images or index == 0:
            return self._seconds[index]
        low, high = self._sizes[index - 1 : index + 1]
        weight = (images - low) / (high - low)
        return (1 - weight) * self._seconds[index - 1] + weight * self._seconds[index]

    def expected(self, images: int) -> float:
        """Return the seconds that a batch is expected to take at the current load."""
        return self.measured(images) * self._slowdown

    def observe(self, images: int, seconds: float) -> None:
        """Update the slowdown with the duration of a batch."""
        ratio = min(seconds / self.measured(images), MAX_SLOWDOWN)
        self._slowdown += SMOOTHING * (ratio - self._slowdown)


def measure_service_times(
    backend: Backend, images: UInt8Array, max_batch: int, known: ServiceTimes | None = None,
    warm_up: int = 2,
) -> ServiceTimes:  # fmt: skip
    """Time batches of 1, 2, 4 ... `max_batch` images, and stop early if throughput stagnates.

    The first `warm_up` runs of each size warm the engine up; on a GPU, the second one captures a
    CUDA graph for exactly this size. With the `known` times of an equal instance, there are no
    others.

    Raises:
        BackendError: The engine failed.
    """
    seconds = dict(known.seconds) if known else {}
    powers = range(max_batch.bit_length() + 1)
    for size in list(seconds) or sorted({min(1 << power, max_batch) for power in powers}):
        batch = np.resize(images, (size, *images.shape[1:]))
        for _ in range(warm_up):
            backend.run(batch)
        if known is None:
            seconds[size] = _fastest_run(backend, batch)
            if size >= 4 * _smallest_worthwhile(list(seconds), list(seconds.values())):
                break
    return ServiceTimes(seconds)


def _fastest_run(backend: Backend, batch: UInt8Array) -> float:
    times: list[float] = []
    while len(times) < REPEATS and sum(times) < REPEAT_SECONDS:
        start = time.perf_counter()
        backend.run(batch)
        times.append(time.perf_counter() - start)
    return min(times)


def _smallest_worthwhile(sizes: list[int], seconds: list[float]) -> int:
    rates = [size / (duration + HANDOVER_SECONDS) for size, duration in zip(sizes, seconds)]
    return next(size for size, rate in zip(sizes, rates) if rate * MIN_GAIN >= max(rates))
