"""Blocks of a task that end early with a reason; a task for each would cost more than its work."""

from __future__ import annotations

import asyncio
import math
import sys
from types import TracebackType


class Interruptible:
    """A `with` block of a task that a deadline or another task may end with an error."""

    def __init__(self, deadline: float = math.inf, late: Exception | None = None) -> None:
        """Prepare a block that raises `late` at `deadline` on the event loop's clock."""
        self._deadline, self._late = deadline, late
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._error: Exception | None = None

    def __enter__(self) -> Interruptible:
        self._task = asyncio.current_task()
        if self._late is not None and self._deadline < math.inf:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._deadline, self.interrupt, self._late)
        return self

    def interrupt(self, error: Exception) -> None:
        """Let the block raise `error` at the place where it waits, unless it has ended."""
        if self._task is not None and self._error is None:
            self._error = error
            self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if self._timer is not None:
            self._timer.cancel()
        if self._error is not None and isinstance(error, asyncio.CancelledError):
            if task is not None and sys.version_info >= (3, 11):
                task.uncancel()
            raise self._error from None
