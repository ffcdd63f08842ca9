"""Reading of request bodies, with limits on size and time and on all bodies together."""

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
    """The client closed the connection before it received the response."""


class ByteBudget:
    """A limit on the bytes of the bodies of all requests in progress."""

    def __init__(self, max_bytes: int) -> None:
        """Allow `max_bytes` bytes."""
        self._max_bytes = max_bytes
        self.used = 0

    @contextmanager
    def reservation(self) -> Iterator[BudgetReservation]:
        """Yield the reservation of one request, and release its bytes at the end."""
        reservation = BudgetReservation(self)
        try:
            yield reservation
        finally:
            self.used -= reservation.used

    def take(self, size: int) -> None:
        """Count `size` more bytes.

        Raises:
            QueueFull: The budget is exhausted.
        """
        if self.used + size > self._max_bytes:
            raise QueueFull("too many large requests at once")
        self.used += size


class BudgetReservation:
    """The bytes that one request uses of a budget."""

    def __init__(self, budget: ByteBudget) -> None:
        """Start with zero bytes."""
        self._budget = budget
        self.used = 0

    def take(self, size: int) -> None:
        """Count `size` more bytes.

        Raises:
            QueueFull: The budget is exhausted.
        """
        self._budget.take(size)
        self.used += size


def check_content_length(request: Request, max_bytes: int) -> None:
    """Check the Content-Length header, if there is one.

    Raises:
        RequestError: The header is not a number.
        TooLarge: The length exceeds `max_bytes`.
    """
    text = request.headers.get("content-length")
    if text is None:
        return
    if not text.isascii() or not text.isdigit():
        raise RequestError("the header Content-Length is not a number")
    if int(text[:20]) > max_bytes:
        raise TooLarge(f"the body is larger than {max_bytes} bytes")


async def read_body(
    request: Request, reservation: BudgetReservation, max_bytes: int, seconds: float
) -> bytes:
    """Return the whole body of a request.

    Args:
        request: Request whose body has not been read yet.
        reservation: Reservation that counts the bytes; it must live as long as the body.
        max_bytes: Maximum size in bytes.
        seconds: Time limit in seconds.

    Raises:
        Disconnected: The client closed the connection.
        RequestError: A header is invalid.
        TooLarge: The body exceeds `max_bytes`.
        RequestTimeout: The body did not arrive in time.
        QueueFull: The budget is exhausted.
    """
    check_content_length(request, max_bytes)
    try:
        return await asyncio.wait_for(_collect(request, reservation, max_bytes), seconds)
    except asyncio.TimeoutError:
        raise RequestTimeout("the body did not arrive in time") from None


async def _collect(request: Request, reservation: BudgetReservation, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            raise TooLarge(f"the body is larger than {max_bytes} bytes")
        reservation.take(len(chunk))
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)
