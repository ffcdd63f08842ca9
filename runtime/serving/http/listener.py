"""The listening HTTP socket, which accepts its whole backlog before it closes.

Source: Linux, Documentation/networking/filter.rst (SO_ATTACH_FILTER, struct sock_fprog).
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import uvicorn

from resdeploy.errors import ServeError, one_line_reason, remedy_for

BACKLOG = 2048
SO_ATTACH_FILTER = 26
DROP_EVERYTHING = struct.pack("HBBI", 6, 0, 0, 0)  # BPF_RET | BPF_K: keep 0 bytes of a packet


def listen(host: str, port: int, option: str = "--port") -> socket.socket:
    """Return a socket that listens on an address; `option` is the one that names the port.

    Raises:
        ServeError: The address cannot be resolved or bound.
    """
    listening = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        # asyncio disables Nagle's algorithm only if the protocol is given explicitly.
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        if listening is not None:
            listening.close()
        hints = {
            errno.EADDRINUSE: f"choose another {option}, or stop the process that uses it",
            errno.EACCES: f"choose a {option} above 1023: the system protects the others",
        }
        raise ServeError(
            f"cannot listen on {host}, port {port}: {one_line_reason(error)}",
            hints.get(error.errno or 0)
            or remedy_for(error, "choose an address of this machine with --host"),
        ) from error
    return listening


def drop_new_connections(listening: socket.socket) -> bool:
    """Drop new connections; connections in the backlog can still be accepted.

    A client that connects between the last `accept` and `close` would be reset. After this call the
    kernel drops its packets; TCP retries after a second and is then refused by the closed port.

    Returns:
        True if the kernel supports socket filters; otherwise new connections still arrive.
    """
    instructions = ctypes.create_string_buffer(DROP_EVERYTHING, len(DROP_EVERYTHING))
    program = struct.pack("HP", 1, ctypes.addressof(instructions))
    with suppress(OSError):
        listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        return True
    return False


class HttpServer(uvicorn.Server):
    """A uvicorn server without signal handlers that serves the backlog before it stops."""

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
            drop_new_connections(listening)
            # Closing the socket would reset the connections that wait in the backlog.
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
