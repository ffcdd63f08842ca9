"""The listening sockets: their division among addresses, and their shutdown."""

from __future__ import annotations

import select
import socket
from contextlib import ExitStack, closing

import pytest

from resdeploy.errors import ServeError
from resdeploy.runtime.serving.http.listener import (
    SOCKETS,
    drop_new_connections,
    listen,
    listen_by_address,
)

TIMEOUT = 0.2  # a connection on the loopback interface takes microseconds


def test_the_backlog_is_served_and_new_connections_are_dropped() -> None:
    with closing(listen("127.0.0.1", 0)) as listening, socket.socket() as dropped:
        listening.setblocking(False)
        address = listening.getsockname()
        with socket.create_connection(address) as waiting:
            if not drop_new_connections(listening):
                pytest.skip("this kernel has no socket filters")
            dropped.settimeout(TIMEOUT)
            with pytest.raises(TimeoutError):
                dropped.connect(address)
            accepted, _ = listening.accept()
            with accepted:
                waiting.sendall(b"question")
                assert accepted.recv(8) == b"question"
                accepted.sendall(b"answer")
                assert waiting.recv(8) == b"answer"
            with pytest.raises(BlockingIOError):
                listening.accept()


def test_an_address_fills_the_backlog_of_one_socket_only() -> None:
    with ExitStack() as stack:
        sockets = [stack.enter_context(each) for each in listen_by_address("127.0.0.1", 0)]
        if len(sockets) == 1:
            pytest.skip("this kernel cannot divide addresses among sockets")
        address = sockets[0].getsockname()
        with pytest.raises(ServeError, match="in use"):  # the sockets are shared with nobody
            listen_by_address(*address)
        found = set()
        for number in range(2, 34):
            for _ in range(2):
                source = f"127.0.0.{number}", 0
                stack.enter_context(socket.create_connection(address, source_address=source))
            ready, _, _ = select.select(sockets, [], [])
            (own,) = ready
            found.add(own)
            for _ in range(2):
                own.accept()[0].close()
        assert len(found) > SOCKETS / 2


def test_a_dropped_client_is_refused_after_the_socket_is_closed() -> None:
    listening = listen("127.0.0.1", 0)
    address = listening.getsockname()
    drop_new_connections(listening)
    listening.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
