"""The listening HTTP sockets with their limits, which accept their backlog before they close.

Sources: Linux, Documentation/networking/filter.rst (struct sock_fprog), and socket(7).
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn

from resdeploy.errors import ServeError, one_line_reason, remedy_for
from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.runtime.serving.http.connection import LimitedProtocol
from resdeploy.runtime.serving.http.connection_table import ConnectionTable, client_network

logger = logging.getLogger(__name__)

BACKLOG = 2048
SO_ATTACH_FILTER, SO_ATTACH_REUSEPORT_CBPF = 26, 51
# Connections of one socket accepted before other work of the event loop continues: about 1 ms.
MAX_ACCEPTS = 8
# Sockets of one port, among which addresses are divided: a flood fills the backlog of one.
SOCKETS = 16
RETRY_SECONDS = 0.1
WARNING_SECONDS = 10.0
CHECK_SECONDS = 0.25  # resolution of the time limits of connections
DROP_EVERYTHING = struct.pack("HBBI", 6, 0, 0, 0)  # BPF_RET | BPF_K: keep 0 bytes of a packet
# The upper bits of a hash of the source, of IPv6 the /64 network, select a socket: read the version
# from the IP header (at SKF_NET_OFF), load the address, multiply by Knuth's constant, shift.
BY_ADDRESS = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 0xFFF00000), (0x74, 0, 0, 4), (0x15, 0, 2, 4),
        (0x20, 0, 0, 0xFFF0000C), (0x05, 0, 0, 4),
        (0x20, 0, 0, 0xFFF00008), (0x07, 0, 0, 0), (0x20, 0, 0, 0xFFF0000C), (0xAC, 0, 0, 0),
        (0x24, 0, 0, 0x9E3779B1), (0x74, 0, 0, 32 - (SOCKETS - 1).bit_length()), (0x16, 0, 0, 0),
    )
)  # fmt: skip


def listen_by_address(host: str, port: int) -> list[socket.socket]:
    """Return sockets that listen on one address, each for some of the clients; one if need be.

    Raises:
        ServeError: The address cannot be resolved or bound, or another process listens on it.
    """
    with listen(host, port) as alone:
        port = alone.getsockname()[1]
    sockets = [listen(host, port, shared=True) for _ in range(SOCKETS)]
    if not _attach(sockets[0], SO_ATTACH_REUSEPORT_CBPF, BY_ADDRESS):
        for surplus in sockets[1:]:
            surplus.close()
        del sockets[1:]
    return sockets


def listen(host: str, port: int, option: str = "--port", *, shared: bool = False) -> socket.socket:
    """Return a socket that listens on an address; `option` is the one that names the port.

    Several sockets of one user may share an address.

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
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
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
    return _attach(listening, SO_ATTACH_FILTER, DROP_EVERYTHING)


def _attach(listening: socket.socket, option: int, instructions: bytes) -> bool:
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    program = struct.pack("HP", len(instructions) // 8, ctypes.addressof(buffer))
    with suppress(OSError):
        listening.setsockopt(socket.SOL_SOCKET, option, program)
        return True
    return False


class HttpServer(uvicorn.Server):
    """A uvicorn server that accepts connections within limits, and its backlog before it stops."""

    def __init__(
        self, config: uvicorn.Config, settings: ServeConfig, refused: Callable[[Any, int], None]
    ) -> None:
        """Create a server; `refused` gets the client and status of requests that are not parsed."""
        super().__init__(config)
        self.table = ConnectionTable(settings.connections)
        self._settings = settings
        self._refused = refused
        self._next_warning = 0.0

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # asyncio accepts up to its backlog of 2048 connections at once, and does not count
        # handshakes of TLS; if no file handle is left, it logs as many errors.
        await super().startup(sockets=[])
        self._watch = asyncio.ensure_future(self._check_times())
        for listening in sockets or ():
            listening.setblocking(False)
            asyncio.get_running_loop().add_reader(listening, self._accept_some, listening)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listening in sockets or ():
            asyncio.get_running_loop().remove_reader(listening)
            drop_new_connections(listening)
        for listening in sockets or ():
            # Closing the socket would reset the connections that wait in the backlog.
            with suppress(OSError):  # no file handle is left
                while self._accept(listening):
                    pass
        await super().shutdown(sockets)

    def _accept_some(self, listening: socket.socket) -> None:
        try:
            for _ in range(MAX_ACCEPTS):
                if not self._accept(listening):
                    break
        except OSError as error:  # usually EMFILE: no file handle is left
            loop = asyncio.get_running_loop()
            if loop.time() >= self._next_warning:
                self._next_warning = loop.time() + WARNING_SECONDS
                logger.warning("cannot accept connections: %s", one_line_reason(error))
            self.table.close_longest_wait()
            loop.remove_reader(listening)
            loop.call_later(RETRY_SECONDS, self._accept_again, listening)

    def _accept_again(self, listening: socket.socket) -> None:
        if listening.fileno() >= 0 and not self.should_exit:
            asyncio.get_running_loop().add_reader(listening, self._accept_some, listening)

    def _accept(self, listening: socket.socket) -> bool:
        """Accept a connection; return False if none waits."""
        try:
            accepted, address = listening.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionAbortedError:
            return True
        network = client_network(address[0])
        if not self.table.make_room(network):
            accepted.close()
            return True
        accepted.setblocking(False)
        connection = LimitedProtocol(
            self.config,
            self.server_state,
            self._settings,
            self.table,
            accepted,
            network,
            self._refused,
        )
        # uvicorn adds it after the handshake, and would not wait for it at shutdown.
        self.server_state.connections.add(connection)
        connection.task = asyncio.ensure_future(self._serve_connection(connection, accepted))
        self.table.add(connection)
        return True

    async def _serve_connection(self, connection: LimitedProtocol, accepted: socket.socket) -> None:
        loop, tls = asyncio.get_running_loop(), self.config.ssl
        try:
            if tls is not None:
                await _first_byte(accepted)
            await loop.connect_accepted_socket(lambda: connection, accepted, ssl=tls)
            await connection.closed
        except OSError:  # the handshake failed
            pass
        finally:
            self.table.remove(connection)
            self.server_state.connections.discard(connection)
            if connection.transport is None:
                accepted.close()
            else:
                connection.transport.abort()

    async def _check_times(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            now = asyncio.get_running_loop().time()
            unread: list[tuple[int, LimitedProtocol]] = []
            for connection in list(self.server_state.connections):
                assert isinstance(connection, LimitedProtocol)
                connection.check_time(now)
                if connection.transport is not None:
                    unread.append((connection.transport.get_write_buffer_size(), connection))
            self._limit_unread(unread)

    def _limit_unread(self, unread: list[tuple[int, LimitedProtocol]]) -> None:
        """Close the connections with most unread bytes of answers, until the others have few."""
        excess = sum(size for size, _ in unread) - (self._settings.bodies_mib << 20)
        for size, connection in sorted(unread, key=lambda each: -each[0]):
            if excess <= 0:
                break
            excess -= size
            connection.task.cancel()


async def _first_byte(accepted: socket.socket) -> None:
    """Wait for the first byte, before the state of TLS costs half a millisecond and memory."""
    loop = asyncio.get_running_loop()
    arrived = asyncio.Event()
    loop.add_reader(accepted, arrived.set)
    try:
        await arrived.wait()
    finally:
        loop.remove_reader(accepted)
