"""SIGINT and SIGTERM during a training: it finishes the step that runs, and saves its state."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from resdeploy.errors import end_command


@dataclass(slots=True)
class StopRequest:
    """A request to stop, once a signal has come: the exit code of the command, else None."""

    code: int | None = None


@contextmanager
def awaited_stop(*, alone: bool) -> Iterator[StopRequest]:
    """Yield a request that the first signal sets; the second one ends the process at once.

    A signal that the caller handles or ignores stays so. Both do unless the process is `alone`: its
    handler would not run while it waits for other processes, and they would wait for it.
    """
    request, before = StopRequest(), {}
    if alone and threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        usual = (signal.SIG_DFL, signal.default_int_handler, end_command)
        before = {number: handler for number, handler in handlers.items() if handler in usual}

    def set_handlers(new: signal._HANDLER | None = None) -> None:
        for number, handler in before.items():
            signal.signal(number, new or handler)

    def stop(number: int, _: object) -> None:
        request.code = 128 + number if number == signal.SIGTERM else 1  # that of a shell, of click
        set_handlers()

    set_handlers(stop)
    try:
        yield request
    finally:
        set_handlers()
