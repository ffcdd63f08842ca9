"""The open connections of a port: how many, from which addresses, and which wait for a client.

If there are too many, a new connection replaces the one whose client has kept the server waiting
longest, as nginx reuses idle connections (`ngx_drain_connections` of src/core/ngx_connection.c).
Probes and new clients are therefore answered, however many connections others hold open.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections import Counter
from typing import Protocol

# Connections above the limit, if no client keeps the server waiting: probes are answered on them.
SPARE_CONNECTIONS = 32
# Share of one address. Behind a proxy all clients have one address: the share is the limit then.
SHARE = 0.75
# Answers of no model to one address per second, each of which takes the event loop about 0.5 ms.
# After each further one, its connection is not read for a while: clients should retry after 1 s.
MAX_OTHER_ANSWERS = 50
PAUSE_SECONDS = 1.0, 3.0  # random, so that the requests after the pauses do not arrive together


class Connection(Protocol):
    """A connection whose task ends, and closes it, if it is cancelled."""

    network: str
    task: asyncio.Task[None]

    def has_input(self) -> bool:
        """Return True if bytes of the client have arrived that the server will read at once."""
        ...


class ConnectionTable:
    """The connections of one port, from `accept` to the end; TLS handshakes are included."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._share = max(1, int(SHARE * limit))
        self._open: dict[Connection, None] = {}
        self._by_network: Counter[str] = Counter()
        self._waiting: dict[Connection, None] = {}  # in the order in which the waits began
        self._other_answers: Counter[str] = Counter()  # by network, in this second
        self._second = 0

    @property
    def over_capacity(self) -> bool:
        """True if the server works for so many connections that others get only probes."""
        return len(self._open) > self._limit

    def make_room(self, network: str) -> bool:
        """Close a connection if `network` or all clients have too many; False if none can close."""
        if self._by_network[network] >= self._share:
            return self.close_longest_wait(network) or self._has_spare()
        if len(self._open) >= self._limit:
            crowded = self._by_network.most_common(1)[0][0]
            return (
                self.close_longest_wait(crowded) or self.close_longest_wait() or self._has_spare()
            )
        return True

    def close_longest_wait(self, network: str | None = None) -> bool:
        """Close the connection, of `network` if given, that has waited longest; False if none.

        A request that has arrived meanwhile is not lost: its connection does not wait any more.
        """
        for connection in self._waiting:
            if network in (None, connection.network) and not connection.has_input():
                self.remove(connection)
                connection.task.cancel()
                return True
        return False

    def add(self, connection: Connection) -> None:
        """Add a new connection; the server waits for its client."""
        self._open[connection] = None
        self._by_network[connection.network] += 1
        self.mark_waiting(connection)

    def remove(self, connection: Connection) -> None:
        """Remove a connection, unless it has been removed."""
        self.mark_working(connection)
        if connection in self._open:
            del self._open[connection]
            self._by_network[connection.network] -= 1
            if not self._by_network[connection.network]:
                del self._by_network[connection.network]

    def mark_waiting(self, connection: Connection) -> None:
        """Note that the server waits for the client of an open connection from now on."""
        self._waiting.pop(connection, None)
        if connection in self._open:
            self._waiting[connection] = None

    def mark_working(self, connection: Connection) -> None:
        """Note that the server does not wait for the client of this connection."""
        self._waiting.pop(connection, None)

    def pause_after_other_answer(self, network: str, now: float) -> float:
        """Return for how many seconds the connection that got the answer is not read."""
        if self._second != int(now):
            self._second = int(now)
            self._other_answers.clear()
        self._other_answers[network] += 1
        is_more = self._other_answers[network] > MAX_OTHER_ANSWERS
        return random.uniform(*PAUSE_SECONDS) if is_more else 0.0

    def _has_spare(self) -> bool:
        return len(self._open) < self._limit + SPARE_CONNECTIONS


def client_network(address: str) -> str:
    """Return the IPv4 address, or the /64 network of an IPv6 address: one client has all of it."""
    if ":" not in address:
        return address
    parsed = ipaddress.IPv6Address(address.partition("%")[0])
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, 64), strict=False))
