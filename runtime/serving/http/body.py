"""Reading of request bodies, with limits on size and time and on all bodies together."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
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
        self._max_bytes = max_bytes
        self.used = 0

    @contextmanager
    def reservation(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that counts bytes of one request, and release them at the end.

        The function raises `QueueFull` if the budget is exhausted.
        """
        reserved = 0

        def reserve(size: int) -> None:
            nonlocal reserved
            if self.used + size > self._max_bytes:
                raise QueueFull("too many large requests at once")
            self.used += size
            reserved += size

        try:
            yield reserve
        finally:
            self.used -= reserved


def parse_integer(text: str, name: str, low: int, high: int) -> int:
    """Return `text`, the value of `name`, as an integer from `low` to `high`.

    Raises:
        RequestError: The text is not such an integer.
    """
    # Python refuses to convert thousands of digits.
    number = int(text[:20]) if text.isascii() and text.isdigit() else -1
    if not low <= number <= high:
        raise RequestError(f"{name} must be an integer from {low} to {high}")
    return number


async def read_body(
    request: Request, reserve: Callable[[int], None], max_bytes: int, seconds: float
) -> bytes:
    """Return the whole body of a request.

    Args:
        request: Request whose body has not been read yet.
        reserve: Function of `ByteBudget.reservation` that counts the bytes.
        max_bytes: Maximum size in bytes.
        seconds: Time limit in seconds.

    Raises:
        Disconnected: The client closed the connection.
        RequestError: The Content-Length is invalid, the body is too large or does not arrive in
            time, or the budget is exhausted.
    """
    length = request.headers.get("content-length", "0")
    if parse_integer(length, "the header Content-Length", 0, sys.maxsize) > max_bytes:
        raise TooLarge(f"the body is larger than {max_bytes} bytes")
    try:
        return await asyncio.wait_for(_collect(request, reserve, max_bytes), seconds)
    except asyncio.TimeoutError:
        raise RequestTimeout("the body did not arrive in time") from None


async def _collect(request: Request, reserve: Callable[[int], None], max_bytes: int) -> bytes:
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
        reserve(len(chunk))
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)
