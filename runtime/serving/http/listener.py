"""The HTTP socket, from the first connection to the last one in the kernel's backlog.

Source: Linux, Documentation/networking/filter.rst (SO_ATTACH_FILTER, struct sock_fprog).
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import uvicorn

from resdeploy.errors import ServeError

BACKLOG = 2048
SO_ATTACH_FILTER = 26
DROP_EVERYTHING = struct.pack("HBBI", 6, 0, 0, 0)  # BPF_RET | BPF_K: keep 0 bytes of a packet


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address.

    Raises:
        ServeError: it cannot.
    """
    listening = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        # asyncio switches Nagle's algorithm off only where the protocol is named.
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        if listening is not None:
            listening.close()
        raise ServeError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}",
            "choose another --host or --port, or stop what has it",
        ) from error
    return listening


def turn_away(listening: socket.socket) -> bool:
    """Let nobody connect any more; who has, can still be accepted.

    Between the last `accept` and `close` somebody may connect, and would be reset. The kernel drops
    what comes now: who asks again, as TCP does after a second, is refused.

    Returns:
        Whether the kernel has filters; otherwise the gap stays open.
    """
    instructions = ctypes.create_string_buffer(DROP_EVERYTHING, len(DROP_EVERYTHING))
    program = struct.pack("HP", 1, ctypes.addressof(instructions))
    with suppress(OSError):
        listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        return True
    return False


class HttpServer(uvicorn.Server):
    """uvicorn without its signals, and without losing those who are just connecting."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        protocol: Any = self.config.http_protocol_class
        factory = partial(
            protocol,
            config=self.config,
            server_state=self.server_state,
            app_state={},
        )
        for listening in sockets or ():
            turn_away(listening)
            # Closing the socket would reset connections that the kernel has accepted already.
            while (accepted := _accept(listening)) is not None:
                await loop.connect_accepted_socket(factory, accepted, ssl=self.config.ssl)
        await super().shutdown(sockets)


def _accept(listening: socket.socket) -> socket.socket | None:
    try:
        accepted, _ = listening.accept()
    except OSError:
        return None
    accepted.setblocking(False)
    return accepted
