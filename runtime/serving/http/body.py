"""Reading of request bodies, with limits on size and time and on all bodies together."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.requests import Request

from resdeploy.runtime.serving.interruptible import interruptible
from resdeploy.runtime.serving.request_errors import (
    QueueFull,
    RequestError,
    RequestTimeout,
    TooLarge,
)

MAX_DIGITS = 20

Body = bytes | bytearray


class Disconnected(Exception):
    """The client closed the connection before it received the response."""


class Reservation:
    """The part of a `ByteBudget` that one request uses."""

    def __init__(self, budget: ByteBudget, network: str) -> None:
        self._budget = budget
        self.network = network
        self.size = 0
        self.arriving: Callable[[Exception], None] | None = None
        """Function that ends the reception of the body, or the connection, with an error."""

    def add(self, size: int) -> None:
        """Reserve `size` more bytes.

        Raises:
            QueueFull: The budget is exhausted, and no other body has to give way.
        """
        self._budget.make_room(size, self)
        self._budget.used += size
        self.size += size

    def release(self) -> None:
        """Give all bytes back."""
        self._budget.used -= self.size
        self.size = 0


class ByteBudget:
    """A limit on the bytes of the bodies of all requests in progress.

    If it is exhausted, the network that holds most loses the body that has been arriving longest:
    neither slow bodies nor many large ones can keep out others.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._reservations: dict[Reservation, None] = {}  # in the order of their begin
        self.used = 0

    @contextmanager
    def reservation(self, network: str) -> Iterator[Reservation]:
        """Yield a reservation of a request from `network`, and release it at the end."""
        reservation = Reservation(self, network)
        self._reservations[reservation] = None
        try:
            yield reservation
        finally:
            del self._reservations[reservation]
            reservation.release()

    def make_room(self, size: int, asking: Reservation) -> None:
        while self.used + size > self._max_bytes:
            held: Counter[str] = Counter()
            for one in self._reservations:
                held[one.network] += one.size
            arriving = [one for one in self._reservations if one.arriving]
            oldest = max(arriving, key=lambda one: held[one.network], default=asking)
            if oldest is asking or oldest.arriving is None:
                raise QueueFull("too many large requests at once")
            reason = "other requests needed the memory of this body, which arrived slowly"
            oldest.arriving(QueueFull(reason))
            oldest.arriving = None
            oldest.release()


def parse_integer(text: str, name: str, low: int, high: int) -> int:
    """Return `text`, the value of `name`, as an integer from `low` to `high`.

    Raises:
        RequestError: The text is not such an integer.
    """
    # Python refuses to convert thousands of digits.
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else -1
    if not low <= number <= high:
        raise RequestError(f"{name} must be an integer from {low} to {high}")
    return number


async def read_body(
    request: Request, reservation: Reservation, max_bytes: int, seconds: float
) -> Body:
    """Return the whole body of a request, which nobody changes any more.

    Args:
        request: Request whose body has not been read yet.
        reservation: Reservation of the request, which counts the bytes.
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
    deadline = asyncio.get_running_loop().time() + seconds
    # A list might have a million chunks of one byte. A copy of 64 MiB would take 100 ms.
    body, more = bytearray(), True
    late = RequestTimeout("the body did not arrive in time")
    with interruptible(deadline, late) as reservation.arriving:
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            chunk: bytes = message.get("body", b"")
            if len(body) + len(chunk) > max_bytes:
                raise TooLarge(f"the body is larger than {max_bytes} bytes")
            reservation.add(len(chunk))
            body += chunk
            more = message.get("more_body", False)
    reservation.arriving = None
    return body
