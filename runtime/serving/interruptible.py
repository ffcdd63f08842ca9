"""Blocks of a task that end early with a reason: a task for each would cost more than its work."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interruptible(
    deadline: float = math.inf, late: Exception | None = None
) -> Iterator[Callable[[Exception], None]]:
    """Yield a function that lets the `with` block raise an error at the place where it waits.

    The block also raises `late`, if given, at `deadline`, a time of the event loop's clock.
    """
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    ended, reasons = False, list[Exception]()

    def interrupt(reason: Exception) -> None:
        if task is not None and not ended and not reasons:
            reasons.append(reason)
            task.cancel()

    timer = loop.call_at(deadline, interrupt, late) if late and deadline < math.inf else None
    try:
        yield interrupt
    except asyncio.CancelledError:
        if not reasons:
            raise
        if task is not None and sys.version_info >= (3, 11):
            task.uncancel()
        raise reasons[0] from None
    finally:
        ended = True
        if timer is not None:
            timer.cancel()
