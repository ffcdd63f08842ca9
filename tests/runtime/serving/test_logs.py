"""Tests of the log: nobody can hold it up, flood it, or write lines of their own into it."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from resdeploy.readable_text import readable
from resdeploy.runtime.serving import logs
from resdeploy.runtime.serving.logs import (
    MAX_EQUAL_LINES,
    MAX_LINE,
    LogQueue,
    TerminalFormatter,
)

HOSTILE = "a\x1b[2J\x9b\n\u2028\u202e\U000e0041\udcd5"


def record(message: str = "m", level: int = logging.INFO, **fields: Any) -> logging.LogRecord:
    line = logging.LogRecord("resdeploy", level, "", 0, message, (), None)
    line.fields = fields
    line.created = 1e9  # one second
    return line


class Pipe:
    """A log that writes to a pipe."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self.queue = LogQueue(self.writer)

    def lines(self) -> list[dict[str, Any]]:
        """Stop the log, and return its lines."""
        self.queue.stop()
        os.close(self.writer)
        self.writer = -1
        with os.fdopen(self.reader, "rb", closefd=False) as stream:
            text = stream.read().decode()
        assert readable(text, keep="\n") == text
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    monkeypatch.setattr(logs, "MAX_QUEUED_LINES", 1000)
    pipe = Pipe()
    yield pipe
    os.close(pipe.reader)
    if pipe.writer >= 0:
        os.close(pipe.writer)


def test_lines_hold_no_control_characters_and_are_short(pipe: Pipe) -> None:
    try:
        raise ValueError(HOSTILE * 10_000)
    except ValueError as error:
        failed = record(HOSTILE * 10_000, logging.ERROR, path=HOSTILE * 10_000)
        failed.exc_info = (type(error), error, error.__traceback__)
    pipe.queue.handle(failed)
    pipe.queue.handle(record(HOSTILE, path=HOSTILE))
    long, short = pipe.lines()
    assert len(json.dumps(long)) < 100_000  # each character may need an escape of 12
    assert "ValueError" not in long["message"]
    assert short["message"] == short["path"] == HOSTILE
    assert failed.exc_info is None  # the frames of a request must not wait in the queue


def test_a_flood_of_equal_lines_is_counted(pipe: Pipe) -> None:
    for number in range(MAX_EQUAL_LINES + 500):
        pipe.queue.handle(record("request", outcome="unauthorized", path=f"/{number}"))
    pipe.queue.handle(record("request", outcome="ok"))
    *lines, last, omitted = pipe.lines()
    assert [line["path"] for line in lines] == [f"/{n}" for n in range(MAX_EQUAL_LINES)]
    assert last["outcome"] == "ok"
    assert omitted["message"] == "equal lines left out: request"
    assert omitted["count"] == 500


def test_a_reader_that_stops_holds_nobody_up(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FLUSH_SECONDS", 0.01)
    os.set_blocking(pipe.writer, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(pipe.writer, bytes(4096))
    os.set_blocking(pipe.writer, True)
    for _ in range(logs.MAX_QUEUED_LINES + 100):
        pipe.queue.handle(record(outcome="ok"))
    assert 99 <= pipe.queue._dropped <= 100  # the thread may hold one
    pipe.queue.stop()
    end = threading.Thread(target=pipe.queue._queue.put, args=(None,))
    end.start()
    os.set_blocking(pipe.reader, False)
    while pipe.queue._thread.is_alive():  # it must not write to a file that is opened later
        with suppress(BlockingIOError):
            os.read(pipe.reader, 1 << 20)
    end.join()


def test_a_line_that_cannot_be_formatted_does_not_end_the_log(pipe: Pipe) -> None:
    broken = record("%d")
    broken.args = ("x",)
    pipe.queue.handle(broken)
    pipe.queue.handle(record("next"))
    assert [line["message"] for line in pipe.lines()] == ["next"]


def test_lost_lines_are_reported(pipe: Pipe) -> None:
    pipe.queue._dropped = 7
    (line,) = pipe.lines()
    assert line["message"] == "lines lost: the reader of stderr is too slow"
    assert line["count"] == 7


def test_a_terminal_shows_short_lines_without_control_characters() -> None:
    text = TerminalFormatter().format
    assert text(record("serving", model="tiny", batch=8)) == "serving: model tiny, batch 8"
    assert text(record("doubt", logging.WARNING, model="a", hint="b")) == "warning: doubt: model a"
    long = text(record(HOSTILE + "word " * 200, logging.WARNING))
    assert readable(long) == long
    assert len(long) <= MAX_LINE + 40
    assert long.endswith(" ...")
    assert "\n" not in text(record("a\nb", logging.ERROR))
