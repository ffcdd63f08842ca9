"""Virtual time that advances only in sleeps, so that tests are exact and fast on any machine."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class Clock:
    """A replacement for the module `time` in single-threaded code; only `sleep` takes time.

    A sleep advances in steps of `step` seconds, and `watchers` are called after each.
    """

    def __init__(self, step: float = float("inf")) -> None:
        self.step = step
        self.watchers: list[Callable[[], object]] = []
        self._now = 1000.0

    def perf_counter(self) -> float:
        return self._now

    monotonic = perf_counter

    def perf_counter_ns(self) -> int:
        return round(1e9 * self._now)

    def sleep(self, seconds: float) -> None:
        end = self._now + seconds
        while self._now < end:
            self._now = min(self._now + self.step, end)
            for watcher in self.watchers:
                watcher()


class _Selector(selectors.SelectSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise AssertionError("deadlock: all tasks wait and no timer is set")
        self.now += max(timeout, 0.0)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of a coroutine that uses no files, sockets or threads."""
    loop = _Loop()
    try:
        return loop.run_until_complete(work)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()
