"""Logs for machines: one JSON object a line on stderr, never waiting for whoever reads them."""

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

# A reader that does not keep up loses lines; requests never wait for it.
LONGEST_QUEUE = 10_000
LOGGERS = ("resdeploy", "uvicorn")


class JsonFormatter(logging.Formatter):
    """Time, level, logger, message, what `extra={"fields": ...}` adds, and a traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
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
    """Send the logs of resdeploy and of the HTTP server to stderr while it lasts."""
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(JsonFormatter())
    handler = _Handler(queue.Queue(LONGEST_QUEUE))
    listener = logging.handlers.QueueListener(handler.queue, stream)
    before = {name: logging.getLogger(name).handlers[:] for name in LOGGERS}
    for name in LOGGERS:
        logging.getLogger(name).handlers[:] = [handler]
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # ours say when it starts and stops
    listener.start()
    try:
        yield
    finally:
        listener.stop()
        for name, handlers in before.items():
            logging.getLogger(name).handlers[:] = handlers
