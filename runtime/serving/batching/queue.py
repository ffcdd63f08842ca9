"""The queue of images that wait for an engine, with the deadline of each entry.

Times are seconds of the event loop's clock.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.serving.batching.interface import Answer
from resdeploy.runtime.serving.request_errors import DeadlineExceeded, Unavailable

RECOVERY_SECONDS = 5.0
# One failure may be the engine's fault. After a second one, on another engine, the request fails.
MAX_ATTEMPTS = 2


@dataclass(slots=True, eq=False)
class QueuedPart:
    """Images (N, H, W, 3) of one request that run in the same batch, and the future answer."""

    images: UInt8Array
    arrived: float
    deadline: float
    future: asyncio.Future[Answer]
    attempts: int = 0
    queued: bool = False
    expiry: asyncio.TimerHandle | None = None

    @property
    def count(self) -> int:
        """Number of images N."""
        return len(self.images)

    def fail(self, error: Exception) -> None:
        """Set `error` on the future, unless it is already done."""
        if not self.future.done():
            self.future.set_exception(error)


class RequestQueue:
    """A first-in, first-out queue of parts; each part is removed when its deadline passes.

    A part fails at its deadline also while its batch runs.
    """

    def __init__(self, expected_wait: Callable[[], float]) -> None:
        """Create an empty queue; `expected_wait` returns the seconds after which a retry helps."""
        self._loop = asyncio.get_running_loop()
        self._expected_wait = expected_wait
        self._parts: deque[QueuedPart] = deque()
        self.images = 0

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def oldest_arrival(self) -> float:
        """Arrival time of the first part; the queue must not be empty."""
        return self._parts[0].arrived

    def append(self, part: QueuedPart) -> None:
        """Add a part at the end."""
        self._mark_queued(part)
        self._parts.append(part)

    def requeue(self, parts: Sequence[QueuedPart]) -> None:
        """Put the parts of a failed batch back to the front, except those that failed before."""
        for part in reversed(parts):
            part.attempts += 1
            if part.future.done():
                continue
            if part.attempts >= MAX_ATTEMPTS:
                part.fail(Unavailable("the model failed", RECOVERY_SECONDS))
                continue
            self._mark_queued(part)
            self._parts.appendleft(part)

    def remove(self, part: QueuedPart) -> None:
        """Remove a part, if it is queued."""
        if part.queued:
            part.queued = False
            self._parts.remove(part)
            self.images -= part.count

    def forget(self, part: QueuedPart) -> None:
        """Remove a part that is answered or cancelled."""
        self.remove(part)
        if part.expiry is not None:
            part.expiry.cancel()

    def pop_batch(self, max_images: int, seconds: Callable[[int], float]) -> list[QueuedPart]:
        """Remove and return the next parts that together have at most `max_images` images.

        The first part is always included. Parts that cannot meet their deadline fail instead. A
        part whose batch made an engine fail runs alone, so that it cannot fail others again.

        Args:
            max_images: Maximum number of images.
            seconds: Function that returns the minimum inference time of a number of images.
        """
        now = self._loop.time()
        batch: list[QueuedPart] = []
        images = 0
        while self._parts:
            part = self._parts[0]
            if batch and (images + part.count > max_images or part.attempts or batch[0].attempts):
                break
            self.remove(part)
            if now + seconds(part.count) > part.deadline:
                part.fail(DeadlineExceeded("the deadline cannot be met", self._expected_wait()))
                continue
            batch.append(part)
            images += part.count
        return batch

    def fail_all(self, message: str) -> None:
        """Remove all parts and fail each with `Unavailable`."""
        for part in list(self._parts):
            self.remove(part)
            part.fail(Unavailable(message, RECOVERY_SECONDS))

    def _mark_queued(self, part: QueuedPart) -> None:
        part.queued = True
        self.images += part.count
        if part.deadline < math.inf and part.expiry is None:
            part.expiry = self._loop.call_at(part.deadline, self._expire, part)

    def _expire(self, part: QueuedPart) -> None:
        self.remove(part)
        part.fail(DeadlineExceeded("the deadline passed", self._expected_wait()))
