"""Logs for machines: one JSON object per line on stderr, written without blocking requests."""

from __future__ import annotations

import json
import logging
import logging.handlers
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from typing import Any

# Lines above this backlog are dropped, so that a slow reader of stderr cannot delay requests.
MAX_QUEUED_LINES = 10_000
LOGGERS = ("resdeploy", "uvicorn")


class JsonFormatter(logging.Formatter):
    """A formatter that writes time, level, logger, message, `extra={"fields": ...}`, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(
                timespec="milliseconds"
            ),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class _Handler(logging.handlers.QueueHandler):
    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record  # the formatter runs in the listener's thread of the same process

    def enqueue(self, record: logging.LogRecord) -> None:
        with suppress(queue.Full):
            self.queue.put_nowait(record)


@contextmanager
def json_logs() -> Iterator[None]:
    """Send the logs of resdeploy and uvicorn to stderr as JSON inside the context."""
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(JsonFormatter())
    handler = _Handler(queue.Queue(MAX_QUEUED_LINES))
    listener = logging.handlers.QueueListener(handler.queue, stream)
    before = {name: logging.getLogger(name).handlers[:] for name in LOGGERS}
    for name in LOGGERS:
        logging.getLogger(name).handlers[:] = [handler]
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # our own logs report start and stop
    # python-multipart logs a warning with the client's data for every unusual form.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    listener.start()
    try:
        yield
    finally:
        listener.stop()
        for name, handlers in before.items():
            logging.getLogger(name).handlers[:] = handlers
