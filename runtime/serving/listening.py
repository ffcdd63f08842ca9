"""The HTTP socket, from the first connection to the last one in the kernel's backlog."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn

from resdeploy.errors import ServeError

BACKLOG = 2048


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
