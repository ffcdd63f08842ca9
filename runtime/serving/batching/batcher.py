"""The dynamic batcher: it admits requests, groups them into batches and dispatches these.

All methods run in one event loop; only `Instance.run` is awaited. N is the number of images of a
request or batch, H and W are rows and columns, K is the number of classes. Times are seconds of
the event loop's clock.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from resdeploy.bundle.golden import Float32Array
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.serving.batching.arrivals import ArrivalEstimator
from resdeploy.runtime.serving.batching.interface import (
    Answer,
    BatchRecord,
    Instance,
    merge_answers,
)
from resdeploy.runtime.serving.batching.queue import RECOVERY_SECONDS, QueuedPart, RequestQueue
from resdeploy.runtime.serving.batching.service_times import ServiceTimes
from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.runtime.serving.request_errors import (
    NOT_READY,
    DeadlineExceeded,
    NoAnswer,
    QueueFull,
    TooLarge,
    Unavailable,
)


@dataclass(slots=True, eq=False)
class _RunningBatch:
    instance: Instance
    parts: list[QueuedPart]
    expected_end: float


class Batcher:
    """The queue of one model and the instances that it feeds."""

    def __init__(
        self,
        config: ServeConfig,
        *,
        on_failure: Callable[[Instance, Exception], None],
        observe: Callable[[BatchRecord], None] = lambda record: None,
    ) -> None:
        """Create a batcher without instances, which admits no request yet.

        Args:
            config: Limits of batch size, delay, wait and queue length.
            on_failure: Function called with an instance that failed and was detached. The images
                of its batch are queued again.
            observe: Function called after every successful batch.
        """
        self._config = config
        self._on_failure = on_failure
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._instances: list[Instance] = []
        self._idle: list[Instance] = []
        self._running: set[_RunningBatch] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._queue = RequestQueue(self.expected_wait)
        self._unanswered = 0  # requests
        self._arrivals = ArrivalEstimator()
        self._timer: asyncio.TimerHandle | None = None
        self._all_answered = asyncio.Event()
        self._all_answered.set()

    @property
    def depth(self) -> int:
        """Number of images that are queued or reserved and have not started."""
        return sum(self._queue.waiting.values())

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
        """Remove an instance; its running batch still finishes."""
        if instance in self._instances:
            self._instances.remove(instance)
        if instance in self._idle:
            self._idle.remove(instance)

    def fail_queued(self, message: str) -> None:
        """Fail all queued requests, because no instance will be attached soon."""
        self._queue.fail_all(message)

    def check_capacity(self, images: int, deadline: float = math.inf, network: str = "") -> None:
        """Raise an error if a request of `images` images of `network` would not be admitted now.

        Raises:
            TooLarge: The request exceeds the whole queue.
            Unavailable: No instance is attached.
            QueueFull: The queue has no space, or the expected wait exceeds the limit.
            DeadlineExceeded: The deadline cannot be met.
        """
        if images > self._config.queue:
            raise TooLarge(f"{images} images in one request; {self._config.queue} are allowed")
        if not self._instances:
            raise Unavailable(NOT_READY, RECOVERY_SECONDS)
        wait, waiting = self.expected_wait(network), self._queue.waiting
        next_batches = self._times.best_batch * len(self._instances)
        most = max(waiting.values(), default=0)
        if self.depth + images > self._config.queue and waiting[network] + images >= most:
            raise QueueFull("the queue is full", wait)
        if not (ahead := self._queue.ahead(network)):
            wait = 0.0  # the request will be in the next batch
        elif ahead >= next_batches and wait > self._config.max_wait_ms / 1000:
            raise QueueFull("the expected wait in the queue is too long", wait)
        fastest = self._times.measured(min(images, self._config.max_batch))
        if self._loop.time() + wait + fastest > deadline:
            raise DeadlineExceeded("the deadline cannot be met", wait)

    @contextmanager
    def admit(
        self, images: int, deadline: float, network: str = ""
    ) -> Iterator[Callable[[UInt8Array], Awaitable[Answer]]]:
        """Reserve queue space for `images` images, for example while they are decoded.

        If the queue is full, the network that has most images in it loses the last ones.

        Yields:
            A function that queues the images (N, H, W, 3) and returns their logits (N, K). If it is
            cancelled, the images that have not started are removed from the queue.

        Raises:
            RequestError: `check_capacity` failed, the deadline passed, or no engine is left.
        """
        self.check_capacity(images, deadline, network)
        while self.depth + images > self._config.queue:
            if not self._queue.drop_surplus():  # its images are not queued yet
                raise QueueFull("the queue is full", self.expected_wait(network))
        self._arrivals.observe(self._unanswered)
        self._unanswered += 1
        self._all_answered.clear()
        self._queue.hold(network, images)
        reserved = images

        def release() -> None:
            nonlocal reserved
            self._queue.hold(network, -reserved)
            reserved = 0

        async def run(pixels: UInt8Array) -> Answer:
            release()
            return await self._enqueue(pixels, deadline, network)

        try:
            yield run
        finally:
            release()
            self._unanswered -= 1
            if not self._unanswered:
                self._all_answered.set()

    def expected_wait(self, network: str = "") -> float:
        """Estimate the seconds until images of a network that arrive now would start."""
        if not self._instances:
            return RECOVERY_SECONDS
        now = self._loop.time()
        first_end = 0.0
        if not self._idle:
            ends = (batch.expected_end for batch in self._running)
            first_end = max(0.0, min(ends, default=now) - now)
        size = self._times.best_batch
        seconds_per_image = self._times.expected(size) / size / len(self._instances)
        return first_end + self._queue.ahead(network) * seconds_per_image

    async def wait_until_answered(self) -> None:
        """Wait until every admitted request is answered."""
        await self._all_answered.wait()

    @property
    def _times(self) -> ServiceTimes:
        return self._instances[0].times

    async def _enqueue(self, images: UInt8Array, deadline: float, network: str) -> Answer:
        now, new_future = self._loop.time(), self._loop.create_future
        size = self._config.max_batch
        parts = [
            QueuedPart(images[start : start + size], now, deadline, new_future(), network)
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
                self._queue.forget(part)

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
        running = sum(len(batch.parts) for batch in self._running)
        start = self._queue.oldest_arrival + self._config.max_delay_ms / 1000
        if (
            len(self._idle) > 1
            or not self._arrivals.expects_more(len(self._queue) + running)
            or self._queue.images >= self._times.best_batch
            or start <= self._loop.time()
        ):
            return None
        return start

    def _start(self, instance: Instance, parts: list[QueuedPart]) -> None:
        images = sum(part.count for part in parts)
        expected_end = self._loop.time() + instance.times.expected(images)
        batch = _RunningBatch(instance, parts, expected_end)
        self._running.add(batch)
        task = self._loop.create_task(self._run(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, batch: _RunningBatch) -> None:
        instance, start = batch.instance, self._loop.time()
        try:
            logits = await instance.run([part.images for part in batch.parts])
        except Exception as error:  # after any error the engine may be in an undefined state
            self._running.discard(batch)
            self._queue.requeue(batch.parts)
            if instance in self._instances:
                self.detach(instance)
                self._on_failure(instance, error)
        else:
            self._running.discard(batch)
            seconds = self._loop.time() - start
            instance.times.observe(len(logits), seconds)
            if instance in self._instances:
                self._idle.append(instance)
            self._set_answers(batch, logits, start, seconds)
        self._dispatch()

    def _set_answers(
        self, batch: _RunningBatch, logits: Float32Array, start: float, seconds: float
    ) -> None:
        first = 0
        for part in batch.parts:
            rows = logits[first : first + part.count]
            first += part.count
            if not np.isfinite(rows).all():
                part.fail(NoAnswer("the model has no finite logits for an image of this request"))
            elif not part.future.done():
                part.future.set_result(
                    Answer(
                        logits=rows,
                        backend=batch.instance.backend,
                        artifact=batch.instance.artifact,
                        batch=len(logits),
                        queue_seconds=start - part.arrived,
                        inference_seconds=seconds,
                    )
                )
        self._observe(
            BatchRecord(
                images=len(logits),
                queue_seconds=tuple(start - part.arrived for part in batch.parts),
                inference_seconds=seconds,
            )
        )
