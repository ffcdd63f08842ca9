"""Blocks of a task that end early with a reason: a task for each would cost more than its work."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interruptible(deadline: float, late: Exception) -> Iterator[Callable[[Exception], None]]:
    """Yield a function that lets the `with` block raise an error at the place where it waits.

    At `deadline`, a time of the event loop's clock, the block raises `late`.
    """
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    ended, reasons = False, list[Exception]()

    def interrupt(reason: Exception) -> None:
        if not (ended or reasons):
            reasons.append(reason)
            task.cancel()

    timer = loop.call_at(deadline, interrupt, late)
    try:
        yield interrupt
    except asyncio.CancelledError:
        if not reasons:
            raise
        if sys.version_info >= (3, 11):
            task.uncancel()
        raise reasons[0] from None
    finally:
        ended = True
        timer.cancel()
