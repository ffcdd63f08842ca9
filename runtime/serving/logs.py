"""Logs on stderr, written without blocking requests: JSON for machines, text on a terminal.

Nobody can hold up the server with its log: lines wait for a thread of their own, in a queue of
limited size, and are dropped, counted and reported if the reader of stderr is slower.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from textwrap import shorten
from typing import Any

from resdeploy.json_documents import one_line
from resdeploy.readable_text import readable

MAX_QUEUED_LINES = 10_000
# Equal messages (of one logger, with one outcome) per second; one line counts those above it. A
# flood of refused requests therefore writes 12 kB per second instead of filling the disk.
MAX_EQUAL_LINES = 50
MAX_TEXT = 2000  # characters of a message or a field
MAX_LINE = 160  # characters on a terminal: two of its lines, enough for a request
MAX_TRACEBACK = 8000  # the last characters of a traceback, which name the error
FLUSH_SECONDS = 1.0  # for the last lines at the end, if the reader of stderr does not read


class JsonFormatter(logging.Formatter):
    """A formatter that writes time, level, logger, message, `extra={"fields": ...}`, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON without control characters, or a `plain` one."""
        if getattr(record, "plain", False):
            return record.getMessage()
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(
                timespec="milliseconds"
            ),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _shortened(record.getMessage()),
        }
        line |= {name: _shortened(value) for name, value in getattr(record, "fields", {}).items()}
        if record.exc_text:
            line["exception"] = record.exc_text[-MAX_TRACEBACK:]
        return one_line(line)


class TerminalFormatter(logging.Formatter):
    """A formatter for people: one short line with the message and its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line without control characters, a traceback, or a `plain` one."""
        if getattr(record, "plain", False):
            return record.getMessage()
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        text = level + getattr(record, "short", record.getMessage())
        fields = {**getattr(record, "fields", {})}
        if record.levelno == logging.WARNING:
            fields.pop("hint", None)  # `resdeploy verify` shows it
        text += ": " * bool(fields) + ", ".join(f"{name} {fields[name]}" for name in fields)
        if record.levelno < logging.ERROR and not hasattr(record, "short"):  # which ends in a path
            text = shorten(text, MAX_LINE, placeholder=" ...")
        lines = (readable(text), readable(record.exc_text or "", keep="\n"))
        return "\n".join(filter(None, lines))


class LogQueue(logging.Handler):
    """A handler that never waits, and the thread that writes its lines to a file descriptor."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self._descriptor = descriptor
        self._queue = queue.Queue[logging.LogRecord | None](MAX_QUEUED_LINES)
        self._equal: dict[tuple[str, str, str], int] = {}
        self._second = 0
        self._dropped = 0
        self._thread = threading.Thread(target=self._write_lines, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Add a line to the queue, unless the queue is full or has many equal ones already."""
        if record.exc_info:  # its frames hold the request, so it must not wait in the queue
            record.exc_text = logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
        outcome = getattr(record, "fields", {}).get("outcome", "")
        if outcome != "ok":
            if self._second != int(record.created):
                self._second = int(record.created)
                self.report_omitted()
            key = (record.name, str(record.msg)[:MAX_TEXT], outcome)
            self._equal[key] = self._equal.get(key, 0) + 1
            if self._equal[key] > MAX_EQUAL_LINES:
                return
        self._put(record)

    def report_omitted(self) -> None:
        """Report the lines that were not written; called with the handler's lock."""
        counts = {key: count - MAX_EQUAL_LINES for key, count in self._equal.items()}
        self._equal.clear()
        for (name, message, outcome), count in counts.items():
            if count > 0:
                text = f"equal lines left out: {message}"
                self._report(count, text, logger=name, outcome=outcome)
        if self._dropped and not self._queue.full():
            dropped, self._dropped = self._dropped, 0
            self._report(dropped, "lines lost: the reader of stderr is too slow")

    def stop(self) -> None:
        """Write the lines in the queue, but do not wait long for the reader of stderr."""
        with self.lock or threading.RLock():
            self.report_omitted()
        with suppress(queue.Full):
            self._queue.put(None, timeout=FLUSH_SECONDS)
        self._thread.join(FLUSH_SECONDS)

    def _report(self, count: int, message: str, **fields: str) -> None:
        record = logging.LogRecord(__name__, logging.WARNING, "", 0, message, (), None)
        record.fields = {"count": count, **fields}
        self._put(record)

    def _put(self, record: logging.LogRecord) -> None:
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def _write_lines(self) -> None:
        while True:
            try:
                record = self._queue.get(timeout=1.0)
            except queue.Empty:
                with self.lock or threading.RLock():  # the end of a flood
                    if self._second != int(time.time()):
                        self.report_omitted()
                continue
            if record is None:
                return
            # Not sys.stderr: its lock would be held at the end of the process, which is fatal.
            with suppress(Exception):  # a line that cannot be formatted must not end the log
                data = (self.format(record) + "\n").encode()
                while data:
                    data = data[os.write(self._descriptor, data) :]


@contextmanager
def json_logs() -> Iterator[None]:
    """Send all logs of this process to stderr inside the context: as JSON, except on a terminal."""
    handler = LogQueue(sys.stderr.fileno())
    if sys.stderr.isatty():
        handler.setFormatter(TerminalFormatter())
    root = logging.getLogger()
    own = [root, *map(logging.getLogger, ("resdeploy", "uvicorn"))]
    before = [logger.handlers[:] for logger in own]
    for logger in own:  # asyncio and gRPC would otherwise write to stderr from the event loop
        logger.handlers[:] = [handler] if logger is root else []
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # our own logs report start and stop
    # python-multipart logs a warning with the client's data for every unusual form, and gRPC a
    # traceback for each client that leaves; `CallGuard` logs what fails.
    for name in ("python_multipart", "grpc"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.captureWarnings(capture=True)
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        for logger, handlers in zip(own, before):
            logger.handlers[:] = handlers
        handler.stop()


def _shortened(value: object) -> object:
    return value[:MAX_TEXT] if isinstance(value, str) else value
