"""The queue of images that wait for an engine, with the deadline of each entry.

Networks of clients take turns by images, so that one with many requests delays only its own: a part
begins at the later of the current turn and the end of the network's previous part, and the part
that begins first is next. Source: Goyal, Vin, Cheng, "Start-time Fair Queuing", SIGCOMM 1996. Times
are seconds of the event loop's clock.
"""

from __future__ import annotations

import asyncio
import math
from bisect import insort
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.serving.batching.interface import Answer
from resdeploy.runtime.serving.request_errors import (
    DeadlineExceeded,
    QueueFull,
    Unavailable,
)

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
    network: str = ""
    turn: int = 0
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
    """A queue of parts in fair order; each part is removed when its deadline passes.

    A part fails at its deadline also while its batch runs.
    """

    def __init__(self, expected_wait: Callable[[str], float]) -> None:
        """Create an empty queue; `expected_wait` returns the seconds after which a retry helps."""
        self._loop = asyncio.get_running_loop()
        self._expected_wait = expected_wait
        self._parts: list[QueuedPart] = []
        self._turn = 0
        self.images = 0
        self.waiting: Counter[str] = Counter()
        """Images by network, with those that are not queued yet."""

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def oldest_arrival(self) -> float:
        """Arrival time of the oldest part; the queue must not be empty."""
        return min(part.arrived for part in self._parts)

    def hold(self, network: str, images: int) -> None:
        """Count so many more images of a network, or fewer if negative."""
        self.waiting[network] += images
        if not self.waiting[network]:
            del self.waiting[network]

    def ahead(self, network: str) -> int:
        """Return the number of images that start before a new one of this network."""
        own = self.waiting[network]
        return sum(min(images, own + (name != network)) for name, images in self.waiting.items())

    def drop_surplus(self) -> bool:
        """Fail the last part of the network that has most images; return False if none waits."""
        network = max(self.waiting, key=self.waiting.__getitem__, default="")
        own = [part for part in self._parts if part.network == network]
        if own:
            self.remove(own[-1])
            own[-1].fail(QueueFull("the queue is full", self._expected_wait(network)))
        return bool(own)

    def append(self, part: QueuedPart) -> None:
        """Add a part at its turn."""
        own = [each.turn + each.count for each in self._parts if each.network == part.network]
        part.turn = max(own, default=self._turn)
        self._mark_queued(part)
        insort(self._parts, part, key=lambda each: each.turn)

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
            self._parts.insert(0, part)

    def remove(self, part: QueuedPart) -> None:
        """Remove a part, if it is queued."""
        if part.queued:
            part.queued = False
            self._parts.remove(part)
            self.images -= part.count
            self.hold(part.network, -part.count)

    def forget(self, part: QueuedPart) -> None:
        """Remove a part that is answered or cancelled."""
        self.remove(part)
        if part.expiry is not None:
            part.expiry.cancel()

    def pop_batch(self, max_images: int, seconds: Callable[[int], float]) -> list[QueuedPart]:
        """Remove and return the next parts that together have at most `max_images` images.

        The first part is always included. Parts that cannot meet their deadline fail instead. A
        part whose batch made an engine fail runs alone, so that it cannot fail others again.
        Networks with more images than a batch has fill batches of their own: a full batch takes
        several times as long as one with the few images of the others.

        Args:
            max_images: Maximum number of images.
            seconds: Function that returns the minimum inference time of a number of images.
        """
        now = self._loop.time()
        batch: list[QueuedPart] = []
        images = 0
        crowds = {name for name, waiting in self.waiting.items() if waiting > max_images}
        while self._parts:
            part = self._parts[0]
            if batch and (
                images + part.count > max_images
                or part.attempts
                or batch[0].attempts
                or (part.network in crowds) != (batch[0].network in crowds)
            ):
                break
            self.remove(part)
            self._turn = part.turn
            if now + seconds(part.count) > part.deadline:
                wait = self._expected_wait(part.network)
                part.fail(DeadlineExceeded("the deadline cannot be met", wait))
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
        self.hold(part.network, part.count)
        if part.deadline < math.inf and part.expiry is None:
            part.expiry = self._loop.call_at(part.deadline, self._expire, part)

    def _expire(self, part: QueuedPart) -> None:
        self.remove(part)
        part.fail(DeadlineExceeded("the deadline passed", self._expected_wait(part.network)))
