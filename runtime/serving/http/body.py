"""Reading what clients send: not too much, not too slowly, and not too much of all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request

from resdeploy.runtime.serving.request_errors import (
    QueueFull,
    RequestError,
    RequestTimeout,
    TooLarge,
)


class Disconnected(Exception):
    """Whoever asked has gone."""


class ByteBudget:
    """Bytes of the bodies of all requests in progress."""

    def __init__(self, most: int) -> None:
        """Allow `most` bytes."""
        self._most = most
        self.used = 0

    @contextmanager
    def share(self) -> Iterator[BudgetShare]:
        """One request's bytes, given back at the end."""
        share = BudgetShare(self)
        try:
            yield share
        finally:
            self.used -= share.used

    def take(self, size: int) -> None:
        """Count further bytes.

        Raises:
            QueueFull: there are too many already.
        """
        if self.used + size > self._most:
            raise QueueFull("too many large requests at once")
        self.used += size


class BudgetShare:
    """What one request uses of a budget."""

    def __init__(self, budget: ByteBudget) -> None:
        """Use nothing yet."""
        self._budget = budget
        self.used = 0

    def take(self, size: int) -> None:
        """See `ByteBudget.take`."""
        self._budget.take(size)
        self.used += size


def announced_length(request: Request, most: int) -> int | None:
    """The body's length as the headers have it; None where they do not say.

    Raises:
        RequestError: that is no number.
        TooLarge: it is over `most` bytes.
    """
    text = request.headers.get("content-length")
    if text is None:
        return None
    if not text.isascii() or not text.isdigit():
        raise RequestError("the header Content-Length is no number")
    if int(text[:20]) > most:
        raise TooLarge(f"the body is larger than {most} bytes")
    return int(text)


async def read_body(request: Request, share: BudgetShare, most: int, seconds: float) -> bytes:
    """A request's whole body.

    Args:
        request: Nothing of it has been read yet.
        share: Counts the bytes; they are kept as long as it is.
        most: Bytes.
        seconds: Until it must be there.

    Raises:
        Disconnected: the client has gone.
        QueueFull, RequestError, RequestTimeout, TooLarge: it is not read to its end.
    """
    announced_length(request, most)
    try:
        return await asyncio.wait_for(_collect(request, share, most), seconds)
    except asyncio.TimeoutError:
        raise RequestTimeout("the body did not come in time") from None


async def _collect(request: Request, share: BudgetShare, most: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > most:
            raise TooLarge(f"the body is larger than {most} bytes")
        share.take(len(chunk))
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)
