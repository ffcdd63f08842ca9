"""How long an engine takes for a batch: measured before it serves, corrected while it does."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping

import numpy as np

from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.backends.base import Backend

# Handing a batch to a thread and its logits back, whatever its size (benchmarks/serving/__main__.py).
HANDOVER_SECONDS = 0.0005
# A larger batch must be worth its latency.
WORTH = 1.05
SMOOTHING = 0.2
# A stall is no reason to refuse for minutes.
LARGEST_SLOWDOWN = 20.0
REPEATS = 3
REPEAT_SECONDS = 0.1


class ServiceTimes:
    """Seconds of batches of some sizes, and how much slower or faster it goes at the moment."""

    def __init__(self, seconds: Mapping[int, float]) -> None:
        """Take the seconds of each size of batches that was measured, undisturbed."""
        self._sizes = sorted(seconds)
        self._seconds = [max(seconds[size], 1e-6) for size in self._sizes]
        self._slowdown = 1.0
        self.best = _smallest_worthwhile(self._sizes, self._seconds)
        """Images of the batch that gives nearly the most images a second."""

    def undisturbed(self, images: int) -> float:
        """Seconds that a batch takes when nothing else runs."""
        place = bisect_left(self._sizes, images)
        if place == len(self._sizes):
            return self._seconds[-1] * images / self._sizes[-1]
        if self._sizes[place] == images or place == 0:
            return self._seconds[place]
        low, high = self._sizes[place - 1 : place + 1]
        share = (images - low) / (high - low)
        return (1 - share) * self._seconds[place - 1] + share * self._seconds[place]

    def expected(self, images: int) -> float:
        """Seconds that a batch takes at the moment."""
        return self.undisturbed(images) * self._slowdown

    def observe(self, images: int, seconds: float) -> None:
        """Learn from a batch that ran."""
        ratio = min(seconds / self.undisturbed(images), LARGEST_SLOWDOWN)
        self._slowdown += SMOOTHING * (ratio - self._slowdown)


def measure(backend: Backend, images: UInt8Array, max_batch: int) -> ServiceTimes:
    """Run batches of 1, 2, 4 ... images, until larger ones are no faster, and at most `max_batch`.

    This also warms the engine up: it captures what it can for just these sizes.

    Raises:
        BackendError: the engine failed.
    """
    seconds: dict[int, float] = {}
    for size in _doubling(max_batch):
        batch = np.resize(images, (size, *images.shape[1:]))
        for _ in range(2):  # the second run captures a CUDA graph
            backend.run(batch)
        seconds[size] = _fastest(backend, batch)
        if size >= 4 * _smallest_worthwhile(list(seconds), list(seconds.values())):
            break
    return ServiceTimes(seconds)


def _fastest(backend: Backend, batch: UInt8Array) -> float:
    times: list[float] = []
    while len(times) < REPEATS and sum(times) < REPEAT_SECONDS:
        start = time.perf_counter()
        backend.run(batch)
        times.append(time.perf_counter() - start)
    return min(times)


def _doubling(largest: int) -> Iterable[int]:
    size = 1
    while size < largest:
        yield size
        size *= 2
    yield largest


def _smallest_worthwhile(sizes: list[int], seconds: list[float]) -> int:
    rates = [size / (took + HANDOVER_SECONDS) for size, took in zip(sizes, seconds)]
    return next(size for size, rate in zip(sizes, rates) if rate * WORTH >= max(rates))
