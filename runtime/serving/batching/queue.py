"""The line before the engines: who waits, in which order, until when.

Times are seconds of the event loop's clock.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.serving.batching.instance import Answer
from resdeploy.runtime.serving.request_errors import DeadlineExceeded, Unavailable

RECOVERY_SECONDS = 5.0
# With which engine a request fails can be chance; with two of them it is the request.
ATTEMPTS = 2


@dataclass(slots=True, eq=False)
class QueuedPart:
    """Images (N, H, W, 3) that are not separated, and who waits for their logits."""

    images: UInt8Array
    arrived: float
    deadline: float
    future: asyncio.Future[Answer]
    attempts: int = 0
    waiting: bool = False
    expiry: asyncio.TimerHandle | None = None

    @property
    def count(self) -> int:
        """N."""
        return len(self.images)

    def fail(self, error: Exception) -> None:
        """Tell who waits, unless nobody does any more."""
        if not self.future.done():
            self.future.set_exception(error)


class RequestQueue:
    """Parts that wait; each leaves by itself when its deadline passes."""

    def __init__(self, expected_wait: Callable[[], float]) -> None:
        """Start empty; `expected_wait` says when those who are late should come again."""
        self._loop = asyncio.get_running_loop()
        self._expected_wait = expected_wait
        self._parts: deque[QueuedPart] = deque()
        self.images = 0

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def oldest(self) -> float:
        """When the first of the line came; it must not be empty."""
        return self._parts[0].arrived

    def join(self, part: QueuedPart) -> None:
        """Go to the end."""
        self._enter(part)
        self._parts.append(part)

    def put_back(self, parts: Sequence[QueuedPart]) -> None:
        """Parts of a batch that failed go to the front, except those that failed before."""
        for part in reversed(parts):
            part.attempts += 1
            if part.future.done():
                continue
            if part.attempts >= ATTEMPTS:
                part.fail(Unavailable("the model failed", RECOVERY_SECONDS))
                continue
            self._enter(part)
            self._parts.appendleft(part)

    def leave(self, part: QueuedPart) -> None:
        """Take a part out if it is there."""
        if part.waiting:
            part.waiting = False
            self._parts.remove(part)
            self.images -= part.count
        if part.expiry is not None:
            part.expiry.cancel()
            part.expiry = None

    def take(self, most: int, seconds: Callable[[int], float]) -> list[QueuedPart]:
        """The next parts of at most `most` images, and at least one; the late are dropped.

        Args:
            most: Images.
            seconds: That so many images take at least.
        """
        now = self._loop.time()
        batch: list[QueuedPart] = []
        images = 0
        while self._parts:
            part = self._parts[0]
            if batch and images + part.count > most:
                break
            self.leave(part)
            if now + seconds(part.count) > part.deadline:
                part.fail(DeadlineExceeded("the deadline cannot be met", self._expected_wait()))
                continue
            batch.append(part)
            images += part.count
        return batch

    def refuse(self, message: str) -> None:
        """Send everybody away."""
        for part in list(self._parts):
            self.leave(part)
            part.fail(Unavailable(message, RECOVERY_SECONDS))

    def _enter(self, part: QueuedPart) -> None:
        part.waiting = True
        self.images += part.count
        if part.deadline < math.inf:
            part.expiry = self._loop.call_at(part.deadline, self._expire, part)

    def _expire(self, part: QueuedPart) -> None:
        self.leave(part)
        part.fail(DeadlineExceeded("the deadline passed", self._expected_wait()))
