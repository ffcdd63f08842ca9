"""The last moments of a listening socket."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from resdeploy.runtime.serving.http.listener import listen, turn_away

MOMENT = 0.2  # loopback connects in microseconds, where anybody answers


def test_who_has_connected_is_served_and_nobody_else_connects() -> None:
    with closing(listen("127.0.0.1", 0)) as listening, socket.socket() as late:
        listening.setblocking(False)
        address = listening.getsockname()
        with socket.create_connection(address) as early:
            if not turn_away(listening):
                pytest.skip("turning connections away is not tested: this kernel has no filters")
            late.settimeout(MOMENT)
            with pytest.raises(TimeoutError):
                late.connect(address)
            accepted, _ = listening.accept()
            with accepted:
                early.sendall(b"question")
                assert accepted.recv(8) == b"question"
                accepted.sendall(b"answer")
                assert early.recv(8) == b"answer"
            with pytest.raises(BlockingIOError):
                listening.accept()


def test_who_tries_on_is_refused_when_it_is_closed() -> None:
    listening = listen("127.0.0.1", 0)
    address = listening.getsockname()
    turn_away(listening)
    listening.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
