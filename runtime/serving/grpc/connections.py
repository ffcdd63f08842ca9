"""The connections of the gRPC port, which gRPC's core accepts and closes on its own.

The server finds them among its open files. After shutdown(2), the core sees that the client left.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import unquote

from resdeploy.runtime.serving.http.connection_table import SHARE, client_network

COUNT_SECONDS = 1.0
OTHERS = OSError, IndexError, ValueError  # of files that are no TCP connections


def client_address(peer: str) -> str:
    """Return the address in gRPC's name of a peer, such as `ipv4:10.0.0.7:4711`, without port."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


def end_connection(peer: str) -> None:
    """End the connection of a client, by gRPC's name of the peer, with all its calls."""
    client = client_network(client_address(peer)), peer.rpartition(":")[2]
    _end_connections(lambda network, port, _: (network, str(port)) == client)


async def limit_addresses(server_port: int, limit: int) -> None:
    """End the connections of each address above its share of `limit`, every second."""
    share = max(1, int(SHARE * limit))
    counts: Counter[str] = Counter()

    def is_surplus(network: str, _: int, own_port: int) -> bool:
        counts[network] += own_port == server_port
        return own_port == server_port and counts[network] > share

    while True:
        await asyncio.sleep(COUNT_SECONDS)
        if len(os.listdir("/proc/self/fd")) > share:
            counts.clear()
            _end_connections(is_surplus)


def _end_connections(chosen: Callable[[str, int, int], bool]) -> None:
    """End the connections that are chosen by their client's network and port, and our port."""
    for handle in map(int, os.listdir("/proc/self/fd")):
        with suppress(*OTHERS):
            copy = os.dup(handle)
            if not stat.S_ISSOCK(os.fstat(copy).st_mode):
                os.close(copy)
                continue
            # Addresses of each family fit into the room for one of this family.
            with socket.socket(socket.AF_INET6, socket.SOCK_STREAM, fileno=copy) as file:
                host, port, *_ = file.getpeername()
                if chosen(client_network(str(host)), port, file.getsockname()[1]):
                    file.shutdown(socket.SHUT_RDWR)
