"""Requests become batches: who is admitted, who runs with whom, and when. No HTTP, no engine.

Everything happens in one event loop; only `Instance.run` is awaited. N images of a request or a
batch, H W rows and columns, K classes; times are seconds of the event loop's clock.
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
from resdeploy.runtime.serving.batching.instance import Answer, BatchRecord, Instance, join
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
    """See `ServeConfig`."""

    max_batch: int = 32
    max_delay: float = 0.002
    max_wait: float = 0.2
    queue: int = 256


@dataclass(slots=True, eq=False)
class _Run:
    """A batch under way."""

    instance: Instance
    parts: int
    ends: float
    """When it is expected to."""


class QueueSlot:
    """Room for a request's images in the queue, kept while they are still being decoded."""

    def __init__(self, batcher: Batcher, images: int, deadline: float) -> None:
        """Come from `Batcher.admit`."""
        self._batcher = batcher
        self._reserved = images
        self._deadline = deadline

    async def run(self, images: UInt8Array) -> Answer:
        """Wait for a turn, then for the logits (N, K) of images (N, H, W, 3).

        Cancelling it takes what has not started out of the queue.

        Raises:
            DeadlineExceeded: the deadline cannot be met any more.
            Unavailable: no engine is left.
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
        self._batcher._leave()


class Batcher:
    """The queue before the instances of one model."""

    def __init__(
        self,
        limits: BatcherLimits,
        *,
        on_failure: Callable[[Instance, Exception], None],
        observe: Callable[[BatchRecord], None] = lambda record: None,
    ) -> None:
        """Start without an instance: nobody is admitted yet.

        Args:
            limits: What may wait, and for how long.
            on_failure: Told of an instance that failed and was taken out; its images wait again.
            observe: Told of every batch that ran.
        """
        self.limits = limits
        self._on_failure = on_failure
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._instances: list[Instance] = []
        self._idle: list[Instance] = []
        self._runs: set[_Run] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._line = RequestQueue(self.expected_wait)
        self._reserved = 0  # images that have a place, and do not wait yet
        self._outstanding = 0  # requests that are not answered
        self._company = ArrivalEstimator()
        self._timer: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def depth(self) -> int:
        """Images that have not started."""
        return self._line.images + self._reserved

    @property
    def instances(self) -> tuple[Instance, ...]:
        """Those that serve."""
        return tuple(self._instances)

    def attach(self, instance: Instance) -> None:
        """Let an instance serve."""
        self._instances.append(instance)
        self._idle.append(instance)
        self._dispatch()

    def detach(self, instance: Instance) -> None:
        """Give an instance no further batch; one that is under way is finished."""
        if instance in self._instances:
            self._instances.remove(instance)
        if instance in self._idle:
            self._idle.remove(instance)

    def give_up(self, message: str) -> None:
        """Refuse all that wait: no instance will come soon."""
        self._line.refuse(message)

    def check(self, images: int, deadline: float = math.inf) -> None:
        """Whether that many images would be admitted now.

        Raises:
            TooLarge: it never would.
            Unavailable, QueueFull, DeadlineExceeded: not now.
        """
        if images > self.limits.queue:
            raise TooLarge(f"{images} images in one request; {self.limits.queue} are allowed")
        if not self._instances:
            raise Unavailable("the model is not ready", RECOVERY_SECONDS)
        wait = self.expected_wait()
        if self.depth + images > self.limits.queue:
            raise QueueFull("the queue is full", wait)
        if not self.depth:
            wait = 0.0  # the next turn is always to be had
        elif self.depth >= self._turn and wait > self.limits.max_wait:
            raise QueueFull("the queue is too long", wait)
        fastest = self._times.undisturbed(min(images, self.limits.max_batch))
        if self._loop.time() + wait + fastest > deadline:
            raise DeadlineExceeded("the deadline cannot be met", wait)

    def admit(self, images: int, deadline: float) -> QueueSlot:
        """Keep room for that many images.

        Raises:
            TooLarge, Unavailable, QueueFull, DeadlineExceeded: see `check`.
        """
        self.check(images, deadline)
        self._company.meet(self._outstanding)
        self._outstanding += 1
        self._empty.clear()
        self._reserved += images
        return QueueSlot(self, images, deadline)

    def expected_wait(self) -> float:
        """Seconds until images that come now would start."""
        if not self._instances:
            return RECOVERY_SECONDS
        now = self._loop.time()
        rest = 0.0
        if not self._idle:
            rest = max(0.0, min((run.ends for run in self._runs), default=now) - now)
        best = self._times.best
        return rest + self.depth * self._times.expected(best) / best / len(self._instances)

    async def empty(self) -> None:
        """Wait until every request that was admitted is answered."""
        await self._empty.wait()

    @property
    def _times(self) -> ServiceTimes:
        return self._instances[0].times

    @property
    def _running(self) -> int:
        """Requests, or parts of large ones, that have started."""
        return sum(run.parts for run in self._runs)

    @property
    def _turn(self) -> int:
        """Images that all instances together take next."""
        return self._times.best * len(self._instances)

    def _leave(self) -> None:
        self._outstanding -= 1
        if not self._outstanding:
            self._empty.set()

    async def _enqueue(self, images: UInt8Array, deadline: float) -> Answer:
        now = self._loop.time()
        size = self.limits.max_batch
        parts = [
            QueuedPart(images[start : start + size], now, deadline, self._loop.create_future())
            for start in range(0, len(images), size)
        ]
        for part in parts:
            self._line.join(part)
        self._dispatch()
        try:
            if len(parts) == 1:
                return await parts[0].future
            return join(await asyncio.gather(*(part.future for part in parts)))
        finally:
            for part in parts:
                part.future.cancel()
                self._line.leave(part)

    def _dispatch(self) -> None:
        """Start what can and should start now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._idle and self._line:
            if start := self._later():
                self._timer = self._loop.call_at(start, self._dispatch)
                return
            if batch := self._line.take(self._times.best, self._times.undisturbed):
                self._start(self._idle.pop(0), batch)

    def _later(self) -> float | None:
        """When the next batch should start; None for now.

        Waiting pays if the last idle engine may get arrivals that is on its way.
        """
        start = self._line.oldest + self.limits.max_delay
        if (
            len(self._idle) > 1
            or not self._company.expected(len(self._line) + self._running)
            or self._line.images >= self._times.best
            or start <= self._loop.time()
        ):
            return None
        return start

    def _start(self, instance: Instance, batch: list[QueuedPart]) -> None:
        images = sum(part.count for part in batch)
        ends = self._loop.time() + instance.times.expected(images)
        run = _Run(instance, len(batch), ends)
        self._runs.add(run)
        task = self._loop.create_task(self._run(run, batch, images))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, run: _Run, batch: list[QueuedPart], images: int) -> None:
        instance, start = run.instance, self._loop.time()
        try:
            logits = await instance.run([part.images for part in batch])
        except Exception as error:  # whatever it is, this engine is not to be trusted any more
            self._runs.discard(run)
            self._line.put_back(batch)
            if instance in self._instances:
                self.detach(instance)
                self._on_failure(instance, error)
            self._dispatch()
            return
        self._runs.discard(run)
        seconds = self._loop.time() - start
        instance.times.observe(images, seconds)
        if instance in self._instances:
            self._idle.append(instance)
        self._answer(instance, batch, logits, start, seconds)
        self._dispatch()

    def _answer(
        self,
        instance: Instance,
        batch: list[QueuedPart],
        logits: Float32Array,
        start: float,
        seconds: float,
    ) -> None:
        first = 0
        for part in batch:
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
                queue_seconds=tuple(start - part.arrived for part in batch),
                inference_seconds=seconds,
            )
        )
