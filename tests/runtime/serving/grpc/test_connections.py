"""Clients that hold calls and connections of the gRPC port."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import Counter
from pathlib import Path

import grpc
import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.runtime.backends import registry
from resdeploy.runtime.serving.grpc import connections
from resdeploy.runtime.serving.grpc.connections import client_address, end_connection
from resdeploy.runtime.serving.grpc.service import start_grpc
from tests.fakes import make_engine
from tests.runtime.serving.conftest import local_server, until
from tests.serving_process import PATIENCE

LIVE = "/inference.GRPCInferenceService/ServerLive"
WATCH = "/grpc.health.v1.Health/Watch"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
HEADERS = {
    ":method": "POST", ":scheme": "http", ":authority": "x", "te": "trailers",
    "content-type": "application/grpc",
}  # fmt: skip


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.7:4711", "10.0.0.7"),
        ("ipv6:%5B::1%5D:4711", "::1"),
        ("unix:/run/x", ""),
        ("", ""),
    ],
)
def test_the_address_of_a_client(peer: str, address: str) -> None:
    assert client_address(peer) == address


def test_files_of_other_kinds_stay_as_they_are(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
    with ours, theirs, netlink, open(tmp_path / "file", "wb"):
        before = os.listdir("/proc/self/fd")
        end_connection("ipv4:10.0.0.7:4711")
        assert os.listdir("/proc/self/fd") == before
        theirs.send(b"x")
        assert ours.recv(1) == b"x"


def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    """Return a frame of HTTP/2: RFC 9113, section 4.1."""
    return struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream) + content


def call_and_read_nothing(port: int, path: str, calls: int) -> socket.socket:
    """Return a connection with so many calls, which allows the server to send 0 bytes of data."""
    named = {**HEADERS, ":path": path}
    fields = [(name.encode(), value.encode()) for name, value in named.items()]
    head = b"".join(
        bytes([0, len(name)]) + name + bytes([len(value)]) + value for name, value in fields
    )
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, struct.pack(">HI", 4, 0))
    )
    for stream in range(1, 2 * calls, 2):
        connection.sendall(frame(1, 4, stream, head) + frame(0, 1, stream, bytes(5)))
    return connection


def is_open(connection: socket.socket) -> bool:
    """Read all that has arrived."""
    connection.setblocking(False)
    try:
        while connection.recv(1 << 16):
            pass
    except BlockingIOError:
        return True
    except ConnectionError:
        pass
    return False


async def answer(port: int) -> str:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            await channel.unary_unary(LIVE)(b"")
        except grpc.aio.AioRpcError as error:
            return str(error.details())
    return "ok"


@pytest.mark.parametrize(
    ("path", "seconds"), [(LIVE, PATIENCE), (LIVE, 0.05), (WATCH, 0.05), (REFLECT, 0.05)]
)
def test_a_client_that_reads_no_answers(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, path: str, seconds: float
) -> None:
    monkeypatch.setattr(registry, "ENGINES", (make_engine(),))
    settings = {"grpc_port": 0, "connections": 8, "body_seconds": seconds}

    async def scenario() -> None:
        async with local_server(tiny_bundle, settings) as local:
            server, port = await start_grpc(local.service, local.service.config, None)
            with call_and_read_nothing(port, path, 6) as connection:
                if seconds == PATIENCE:
                    await until(lambda: "ServerLive" in local.metrics())
                    assert await answer(port) == "too many calls from this address"
                else:
                    await until(lambda: not is_open(connection))
            while await answer(port) != "ok":
                pass
            await server.stop(0)

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


def test_an_address_has_a_share_of_the_connections(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "ENGINES", (make_engine(),))
    monkeypatch.setattr(connections, "COUNT_SECONDS", 0.01)

    async def scenario() -> None:
        async with local_server(tiny_bundle, {"grpc_port": 0, "connections": 8}) as local:
            server, port = await start_grpc(local.service, local.service.config, None)
            opened = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
            await until(lambda: Counter(map(is_open, opened)) == {True: 6, False: 2})
            for connection in opened:
                connection.close()
            assert await answer(port) == "ok"
            await server.stop(0)

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))
