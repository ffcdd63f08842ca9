"""SIGINT and SIGTERM during a training: the step that runs is finished, and its state is saved.

Source: the documentation of Python's module `signal`: handlers run in the main thread, between two
instructions of Python.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

TERMINATED = 128 + signal.SIGTERM  # exit code of a shell for a process that this signal ended


@dataclass(slots=True)
class StopRequest:
    """The signal that asks this process to stop, once it has come."""

    number: int | None = None

    @property
    def exit(self) -> int:
        """Return the exit code of the command."""
        return TERMINATED if self.number == signal.SIGTERM else 1


@contextmanager
def awaited_stop(*, alone: bool) -> Iterator[StopRequest]:
    """Yield the request to stop; a second signal ends the process as if this were not used.

    A signal that the caller handles or ignores stays as it is. So do both if the process is not
    `alone`: while one waits for the others in a collective operation, its handler does not run, and
    if only one stopped, the others would wait for it.
    """
    request, replaced = StopRequest(), {}

    def stop(number: int, _: object) -> None:
        request.number = number
        restore()

    def restore() -> None:
        for number, handler in replaced.items():
            signal.signal(number, handler)

    if alone and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                replaced[number] = signal.signal(number, stop)
    try:
        yield request
    finally:
        restore()
