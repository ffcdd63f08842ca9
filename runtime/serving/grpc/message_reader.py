"""Reading of request messages with limits on time and memory, once the caller may send one.

gRPC's core takes at most `READ_AHEAD_BYTES` of a call before the server asks for its message. From
then on it takes what the message declares, and protobuf may need 40 times the size of a message of
empty fields. Only the tensor itself is therefore large, and it is never parsed.

Sources: https://github.com/grpc/grpc/blob/v1.71.0/doc/PROTOCOL-HTTP2.md and
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.runtime.serving.grpc.connections import client_address
from resdeploy.runtime.serving.http.body import ByteBudget, Reservation
from resdeploy.runtime.serving.http.connection_table import client_network
from resdeploy.runtime.serving.request_errors import (
    QueueFull,
    RequestError,
    RequestTimeout,
    TooLarge,
)

# Names, shapes and parameters beside a tensor, and all messages without one.
ENVELOPE_BYTES = 64 << 10
# A tensor as integers, three images of 224 pixels; protobuf and NumPy need 0.1 s and 50 MB for it.
INTEGER_TENSOR_BYTES = 1 << 20
MAX_FIELDS = 1000  # of one message; clients send about 10
READ_AHEAD_BYTES = 64 << 10  # the window of HTTP/2 by default
# A message that takes longer gives its place to one that waits: slow clients cannot block others.
SLOW_SECONDS = 1.0
MAX_WAITING = 256  # calls that wait for a place; each holds READ_AHEAD_BYTES

RAW_TENSOR = 7 << 3 | 2  # the tag of ModelInferRequest.raw_input_contents


class MessageReader:
    """The messages that are being received, of which each may have the maximum size."""

    def __init__(self, config: ServeConfig) -> None:
        """Allow as many as half of `bodies_mib` holds; complete ones have the other half."""
        self._seconds = config.body_seconds
        self._budget = ByteBudget(max(config.bodies_mib << 19, config.max_body + ENVELOPE_BYTES))
        self._places = max(1, config.bodies_mib // 2 // config.max_body_mib)
        self._reading: dict[asyncio.Future[Any], float] = {}
        self._waiting = 0
        self._changed = asyncio.Event()

    async def read(self, context: Any) -> bytes | None:
        """Return the next message of a call; None if the client sends no further message.

        Raises:
            RequestTimeout: The message does not arrive in time.
            QueueFull: Too many calls wait.
        """
        await self._wait_for_place()
        reading = asyncio.ensure_future(context.read())
        self._reading[reading] = asyncio.get_running_loop().time()
        try:
            await asyncio.wait({reading}, timeout=self._seconds)
            if not reading.done() or reading.cancelled():
                raise RequestTimeout("the message did not arrive in time")
            message = reading.result()
        finally:
            reading.cancel()
            self._reading.pop(reading, None)
            self._changed.set()
        return message if isinstance(message, bytes) else None  # gRPC's EOF is no bytes

    async def read_only(self, context: Any) -> bytes:
        """Return the message of a call that has one; others are never read.

        Raises:
            RequestError: There is none, or it does not arrive as in `read`.
        """
        if (message := await self.read(context)) is None:
            raise RequestError("the call has no message")
        return message

    def reserve(self, context: Any) -> Reservation:
        """Return a reservation for a complete message and its answer, until the call has ended.

        If an answer becomes `arriving`, its connection ends when its bytes are needed.
        """
        reserving = self._budget.reservation(client_network(client_address(context.peer())))
        context.add_done_callback(lambda _: reserving.__exit__(None, None, None))
        return reserving.__enter__()

    async def _wait_for_place(self) -> None:
        if self._waiting >= MAX_WAITING:
            raise QueueFull("too many calls wait for their message to be read")
        self._waiting += 1
        try:
            while len(self._reading) >= self._places:
                reading, since = next(iter(self._reading.items()))
                left = since + SLOW_SECONDS - asyncio.get_running_loop().time()
                if left <= 0:
                    del self._reading[reading]
                    reading.cancel()
                    return
                self._changed.clear()
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), left)
        finally:
            self._waiting -= 1


def parse_small(kind: Any, data: bytes, limit: int = ENVELOPE_BYTES) -> Any:
    """Return a message of a protobuf class from its bytes.

    Raises:
        RequestError: The bytes are no such message.
        TooLarge: There are more than `limit`.
    """
    from google.protobuf.message import DecodeError

    if len(data) > limit:
        raise TooLarge(f"a message of {len(data)} bytes beside its raw tensor; {limit} are allowed")
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise RequestError("the message does not follow the protocol") from error


def split_tensors(data: bytes) -> tuple[bytes, list[memoryview]]:
    """Split a ModelInferRequest into its other fields and its raw tensors, without a copy of these.

    Raises:
        RequestError: A field is not encoded correctly, or there are more than `MAX_FIELDS`.
    """
    view, position = memoryview(data), 0
    others: list[memoryview] = []
    tensors: list[memoryview] = []
    try:
        for _ in range(MAX_FIELDS):
            if position >= len(data):
                break
            start = position
            tag, position = _varint(view, position)
            value = position
            if tag & 7 == 2:  # a length, and so many bytes
                length, value = _varint(view, position)
                position = value + length
            elif tag & 7 == 0:
                position = _varint(view, position)[1]
            else:
                position += {1: 8, 5: 4}[tag & 7]
            if tag == RAW_TENSOR:
                tensors.append(view[value:position])
            else:
                others.append(view[start:position])
    except (IndexError, KeyError) as error:
        raise RequestError("the message does not follow the protocol") from error
    if position != len(data):
        raise RequestError("the message is cut, or has too many fields")
    return b"".join(others), tensors


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    """Return the number at `position`, of at most 64 bits, and the position after it."""
    number = 0
    for index in range(10):
        byte = view[position + index]
        number |= (byte & 127) << 7 * index
        if byte < 128:
            return number, position + index + 1
    raise IndexError
