"""The dynamic batcher: it admits requests, groups them into batches and dispatches these.

All methods run in one event loop; only `Instance.run` is awaited. N is the number of images of a
request or batch, H and W are rows and columns, K is the number of classes. Times are seconds of
the event loop's clock.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from resdeploy.bundle.golden import Float32Array
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.serving.batching.arrivals import ArrivalEstimator
from resdeploy.runtime.serving.batching.instance import (
    Answer,
    BatchRecord,
    Instance,
    merge_answers,
)
from resdeploy.runtime.serving.batching.queue import RECOVERY_SECONDS, QueuedPart, RequestQueue
from resdeploy.runtime.serving.batching.service_times import ServiceTimes
from resdeploy.runtime.serving.request_errors import (
    DeadlineExceeded,
    QueueFull,
    TooLarge,
    Unavailable,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatcherLimits:
    """Limits of a batcher, with the meaning and the defaults of `ServeConfig`, in seconds."""

    max_batch: int = 32
    max_delay: float = 0.002
    max_wait: float = 0.2
    queue: int = 256


@dataclass(slots=True, eq=False)
class _RunningBatch:
    instance: Instance
    parts: int
    expected_end: float


class QueueSlot:
    """Queue space that is reserved for a request while its images are decoded."""

    def __init__(self, batcher: Batcher, images: int, deadline: float) -> None:
        """Store a reservation that `Batcher.admit` has made."""
        self._batcher = batcher
        self._reserved = images
        self._deadline = deadline

    async def run(self, images: UInt8Array) -> Answer:
        """Queue images (N, H, W, 3) and return their logits (N, K).

        Cancelling the call removes the images that have not started from the queue.

        Raises:
            DeadlineExceeded: The deadline cannot be met any more.
            Unavailable: No engine is left.
        """
        self._release()
        return await self._batcher._enqueue(images, self._deadline)

    def _release(self) -> None:
        self._batcher._reserved -= self._reserved
        self._reserved = 0

    def __enter__(self) -> QueueSlot:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._release()
        self._batcher._finish_request()


class Batcher:
    """The queue of one model and the instances that it feeds."""

    def __init__(
        self,
        limits: BatcherLimits,
        *,
        on_failure: Callable[[Instance, Exception], None],
        observe: Callable[[BatchRecord], None] = lambda record: None,
    ) -> None:
        """Create a batcher without instances, which admits no request yet.

        Args:
            limits: Limits of batch size, delay, wait and queue length.
            on_failure: Function called with an instance that failed and was detached. The images
                of its batch are queued again.
            observe: Function called after every successful batch.
        """
        self.limits = limits
        self._on_failure = on_failure
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._instances: list[Instance] = []
        self._idle: list[Instance] = []
        self._running: set[_RunningBatch] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._queue = RequestQueue(self.expected_wait)
        self._reserved = 0  # images of admitted requests that are not queued yet
        self._unanswered = 0  # requests
        self._arrivals = ArrivalEstimator()
        self._timer: asyncio.TimerHandle | None = None
        self._all_answered = asyncio.Event()
        self._all_answered.set()

    @property
    def depth(self) -> int:
        """Number of images that are queued or reserved and have not started."""
        return self._queue.images + self._reserved

    @property
    def instances(self) -> tuple[Instance, ...]:
        """Attached instances."""
        return tuple(self._instances)

    def attach(self, instance: Instance) -> None:
        """Add an instance and give it work."""
        self._instances.append(instance)
        self._idle.append(instance)
        self._dispatch()

    def detach(self, instance: Instance) -> None:
        """Remove an instance; a batch that it runs is finished."""
        if instance in self._instances:
            self._instances.remove(instance)
        if instance in self._idle:
            self._idle.remove(instance)

    def fail_queued(self, message: str) -> None:
        """Fail all queued requests, because no instance will be attached soon."""
        self._queue.fail_all(message)

    def check_capacity(self, images: int, deadline: float = math.inf) -> None:
        """Raise an error if a request of `images` images would not be admitted now.

        Raises:
            TooLarge: The request exceeds the whole queue.
            Unavailable: No instance is attached.
            QueueFull: The queue has no space, or the expected wait exceeds the limit.
            DeadlineExceeded: The deadline cannot be met.
        """
        if images > self.limits.queue:
            raise TooLarge(f"{images} images in one request; {self.limits.queue} are allowed")
        if not self._instances:
            raise Unavailable("the model is not ready", RECOVERY_SECONDS)
        wait = self.expected_wait()
        if self.depth + images > self.limits.queue:
            raise QueueFull("the queue is full", wait)
        if not self.depth:
            wait = 0.0  # the request will be in the next batch
        elif self.depth >= self._next_batches and wait > self.limits.max_wait:
            raise QueueFull("the expected wait in the queue is too long", wait)
        fastest = self._times.measured(min(images, self.limits.max_batch))
        if self._loop.time() + wait + fastest > deadline:
            raise DeadlineExceeded("the deadline cannot be met", wait)

    def admit(self, images: int, deadline: float) -> QueueSlot:
        """Reserve queue space for `images` images.

        Raises:
            TooLarge, Unavailable, QueueFull, DeadlineExceeded: `check_capacity` failed.
        """
        self.check_capacity(images, deadline)
        self._arrivals.observe(self._unanswered)
        self._unanswered += 1
        self._all_answered.clear()
        self._reserved += images
        return QueueSlot(self, images, deadline)

    def expected_wait(self) -> float:
        """Estimate the seconds until images that arrive now would start."""
        if not self._instances:
            return RECOVERY_SECONDS
        now = self._loop.time()
        first_end = 0.0
        if not self._idle:
            ends = (batch.expected_end for batch in self._running)
            first_end = max(0.0, min(ends, default=now) - now)
        size = self._times.best_batch
        seconds_per_image = self._times.expected(size) / size / len(self._instances)
        return first_end + self.depth * seconds_per_image

    async def wait_until_answered(self) -> None:
        """Wait until every admitted request is answered."""
        await self._all_answered.wait()

    @property
    def _times(self) -> ServiceTimes:
        return self._instances[0].times

    @property
    def _running_parts(self) -> int:
        return sum(batch.parts for batch in self._running)

    @property
    def _next_batches(self) -> int:
        """Number of images in the next batches of all instances together."""
        return self._times.best_batch * len(self._instances)

    def _finish_request(self) -> None:
        self._unanswered -= 1
        if not self._unanswered:
            self._all_answered.set()

    async def _enqueue(self, images: UInt8Array, deadline: float) -> Answer:
        now = self._loop.time()
        size = self.limits.max_batch
        parts = [
            QueuedPart(images[start : start + size], now, deadline, self._loop.create_future())
            for start in range(0, len(images), size)
        ]
        for part in parts:
            self._queue.append(part)
        self._dispatch()
        try:
            if len(parts) == 1:
                return await parts[0].future
            return merge_answers(await asyncio.gather(*(part.future for part in parts)))
        finally:
            for part in parts:
                part.future.cancel()
                self._queue.remove(part)

    def _dispatch(self) -> None:
        """Start all batches that can and should start now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._idle and self._queue:
            if start := self._delayed_start():
                self._timer = self._loop.call_at(start, self._dispatch)
                return
            if batch := self._queue.pop_batch(self._times.best_batch, self._times.measured):
                self._start(self._idle.pop(0), batch)

    def _delayed_start(self) -> float | None:
        """Return the time until which the next batch should wait; None to start it now.

        A delay helps only if more requests are likely and just one instance is idle.
        """
        start = self._queue.oldest_arrival + self.limits.max_delay
        if (
            len(self._idle) > 1
            or not self._arrivals.expects_more(len(self._queue) + self._running_parts)
            or self._queue.images >= self._times.best_batch
            or start <= self._loop.time()
        ):
            return None
        return start

    def _start(self, instance: Instance, parts: list[QueuedPart]) -> None:
        images = sum(part.count for part in parts)
        expected_end = self._loop.time() + instance.times.expected(images)
        batch = _RunningBatch(instance, len(parts), expected_end)
        self._running.add(batch)
        task = self._loop.create_task(self._run(batch, parts, images))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, batch: _RunningBatch, parts: list[QueuedPart], images: int) -> None:
        instance, start = batch.instance, self._loop.time()
        try:
            logits = await instance.run([part.images for part in parts])
        except Exception as error:  # after any error the engine may be in an undefined state
            self._running.discard(batch)
            self._queue.requeue(parts)
            if instance in self._instances:
                self.detach(instance)
                self._on_failure(instance, error)
            self._dispatch()
            return
        self._running.discard(batch)
        seconds = self._loop.time() - start
        instance.times.observe(images, seconds)
        if instance in self._instances:
            self._idle.append(instance)
        self._set_answers(instance, parts, logits, start, seconds)
        self._dispatch()

    def _set_answers(
        self,
        instance: Instance,
        parts: list[QueuedPart],
        logits: Float32Array,
        start: float,
        seconds: float,
    ) -> None:
        first = 0
        for part in parts:
            rows = logits[first : first + part.count]
            first += part.count
            if not part.future.done():
                part.future.set_result(
                    Answer(
                        logits=rows,
                        backend=instance.backend,
                        artifact=instance.artifact,
                        batch=len(logits),
                        queue_seconds=start - part.arrived,
                        inference_seconds=seconds,
                    )
                )
        self._observe(
            BatchRecord(
                images=len(logits),
                queue_seconds=tuple(start - part.arrived for part in parts),
                inference_seconds=seconds,
            )
        )
