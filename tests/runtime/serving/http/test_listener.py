"""The shutdown of a listening socket."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from resdeploy.runtime.serving.http.listener import drop_new_connections, listen

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


def test_a_dropped_client_is_refused_after_the_socket_is_closed() -> None:
    listening = listen("127.0.0.1", 0)
    address = listening.getsockname()
    drop_new_connections(listening)
    listening.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
