"""Connections of hostile clients, to a server in this process with an application of the tests."""

from __future__ import annotations

import asyncio
import errno
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import Mock

import pytest
import uvicorn

from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.runtime.serving.http.connection import MAX_HEADER_BYTES, LimitedProtocol
from resdeploy.runtime.serving.http.connection_table import ConnectionTable
from resdeploy.runtime.serving.http.listener import HttpServer, listen
from tests.runtime.serving.conftest import until
from tests.serving_process import PATIENCE

GET = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


class Running:
    """A server, what its application received, and clients for it."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, bytes]] = []
        self.refused: list[int] = []
        self.free = asyncio.Event()  # the application answers only while it is set
        self.free.set()
        self.port = 0
        self.server: Any = None
        self.listening: Any = None

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        self.requests.append((scope["path"], body))
        await self.free.wait()
        content = b"x" * (16 << 20 if scope["path"] == "/large" else 2)
        headers = [(b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def send(self, *parts: bytes) -> bytes:
        """Send parts one after the other, and return all until the server closes."""
        reader, writer = await self.connect()
        answer = b""
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            answer = await reader.read()
        except ConnectionError:
            pass
        writer.close()
        return answer


@asynccontextmanager
async def running(
    tls: Mapping[str, Any] = MappingProxyType({}), **settings: Any
) -> AsyncIterator[Running]:
    local = Running()
    config = uvicorn.Config(
        local.app, interface="asgi3", lifespan="off", log_config=None, ws="none", **tls
    )
    config.load()
    defaults = {"header_seconds": 0.5, "body_seconds": 0.5, "idle_seconds": 0.5}
    serving = ServeConfig(**{**defaults, **settings})
    local.server = HttpServer(config, serving, lambda _, status: local.refused.append(status))
    local.listening = listening = listen("127.0.0.1", 0)
    local.port = listening.getsockname()[1]
    task = asyncio.ensure_future(local.server.serve([listening]))
    await until(lambda: local.server.started)
    try:
        yield local
    finally:
        local.free.set()
        local.server.should_exit = True
        await task


def run(scenario: Any) -> None:
    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


def test_the_end_of_an_answer_is_sent_at_once() -> None:
    async def scenario() -> None:
        async with running() as local:
            reader, writer = await local.connect()
            for number in range(2):
                writer.write(GET % number)
                assert (await reader.readuntil(b"\r\n\r\nxx")).startswith(b"HTTP/1.1 200 ")
                (connection,) = local.server.table._open
                sending = connection._accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK)
                assert sending == 0  # what is held back would wait for 0.2 s
            writer.close()

    run(scenario)


REFUSED = [
    (POST + b"Host: y\r\nContent-Length: 0\r\n\r\n", 400),
    (POST + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n", 400),
    (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    (POST + b"Content-Length: +3\r\n\r\nabc", 400),
    (POST + b"Authorization: a\r\nauthorization: b\r\n\r\n", 400),
    (POST + b"A: b\r\n folded\r\n\r\n", 400),
    (POST + b"A: b\0c\r\n\r\n", 400),
    (POST + b"A : b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\nHost: x\n\n", 400),
    (b"GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (POST + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 1\r\n\r\nA", 400),
    (b"GET /\r\n\r\n", 400),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (POST + b"a: b\r\n" * 101 + b"\r\n", 431),
    (POST + b"a: " + b"b" * MAX_HEADER_BYTES, 431),
    (b"\r\n" * MAX_HEADER_BYTES, 431),
    (CHUNKED + b"1;" + b"x" * 2 * MAX_HEADER_BYTES, 431),
    (CHUNKED + b"1\r\nA\r\n" * 10_000, 431),
    (CHUNKED + b"0\r\n" + b"a: b\r\n" * 10_000, 431),
    (CHUNKED + b"0\r\na: " + b"b" * 2 * MAX_HEADER_BYTES, 431),
    (CHUNKED + b"x\r\n", 400),
]


def test_ambiguous_or_oversized_requests_are_refused() -> None:
    async def scenario() -> None:
        async with running() as local:
            for request, status in REFUSED:
                local.refused.clear()
                answer = await local.send(request)
                # A reset may lose the answer.
                assert answer[:13] in (b"HTTP/1.1 %d " % status, b""), request[:99]
                assert local.refused == [status], request[:99]
            assert local.requests == []

    run(scenario)


def test_valid_requests_are_parsed_whatever_pieces_they_arrive_in() -> None:
    requests = (
        b"\r\n\r\n" + GET % 1
        + b"POST /2 HTTP/1.1\r\nContent-Length: 9\r\n\r\n\r\n\r\nGET /"
        + b"POST /3 HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
        + b"POST /4 HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n"
    )  # fmt: skip
    expected = [("/1", b""), ("/2", b"\r\n\r\nGET /"), ("/3", b""), ("/4", b"abc")]

    async def scenario() -> None:
        async with running(header_seconds=60, body_seconds=60) as local:
            for size in (1, 2, 3, 7, 50, len(requests)):
                local.requests.clear()
                parts = [requests[at : at + size] for at in range(0, len(requests), size)]
                answer = await local.send(*parts)
                assert answer.count(b"HTTP/1.1 200 OK") == 4
                assert local.requests == expected

    run(scenario)


def test_one_request_is_in_progress_and_little_of_others_is_kept() -> None:
    async def scenario() -> None:
        async with running(header_seconds=60) as local:
            local.free.clear()
            first, second = await local.connect(), await local.connect()
            first[1].write(b"".join(GET % number for number in range(9)))
            second[1].write(b"".join(GET % 10 for _ in range(100_000)))
            await until(lambda: len(local.requests) == 2)
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert sorted(path for path, _ in local.requests) == ["/0", "/10"]
            kept = [len(one._unparsed) for one in local.server.server_state.connections]
            assert sum(kept) < 1 << 10
            local.free.set()
            with suppress(ConnectionError):  # the server did not read everything
                assert (await second[0].read()).count(b"HTTP/1.1 200") == 1
            await until(lambda: len(local.requests) == 10)
            assert [path for path, _ in local.requests if path != "/10"] == [
                f"/{number}" for number in range(9)
            ]
            first[1].close()
            second[1].close()

    run(scenario)


def test_a_request_after_a_chunked_one_is_not_parsed_before_its_answer() -> None:
    async def scenario() -> None:
        async with running(header_seconds=60) as local:
            local.free.clear()
            reader, writer = await local.connect()
            writer.write(CHUNKED + b"1\r\nA\r\n0\r\n\r\n" + GET % 1 * 99)
            await until(lambda: local.requests)
            local.free.set()
            assert (await reader.read()).count(b"HTTP/1.1 200") == 1
            assert local.requests == [("/", b"A")]
            writer.close()

    run(scenario)


def test_slow_and_idle_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resdeploy.runtime.serving.http.connection.FALLBACK_SECONDS", 0)
    slow: list[list[bytes]] = [
        [], [b"G"], [b"GET / HTTP/1.1\r\n"], [POST + b"Content-Length: 9\r\n\r\n", b"1"], [CHUNKED],
        [GET % 1], [GET % 1 + b"G"],
    ]  # fmt: skip

    async def scenario() -> None:
        async with running() as local:
            await asyncio.gather(*(local.send(*parts) for parts in slow))
            await until(lambda: not local.server.server_state.connections)

    run(scenario)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the options of a server over TLS."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, so no certificate can be made")
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 "
    command += "-subj /CN=localhost -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), check=True, stderr=subprocess.DEVNULL, cwd=folder)
    return {"ssl_certfile": folder / "cert.pem", "ssl_keyfile": folder / "key.pem"}


def client_over_tls(certificate: dict[str, Path]) -> ssl.SSLContext:
    trust = ssl.create_default_context(cafile=certificate["ssl_certfile"])
    trust.check_hostname = False
    return trust


def test_slow_handshakes_of_tls_end(certificate: dict[str, Path]) -> None:
    trust = client_over_tls(certificate)

    async def scenario() -> None:
        async with running(certificate) as local:
            silent, hello = await local.connect(), await local.connect()
            hello[1].write(b"\x16\x03\x01\x02\x00\x01")
            shaken = await asyncio.open_connection("127.0.0.1", local.port, ssl=trust)
            for reader, writer in (silent, hello, shaken):
                with suppress(ConnectionError):
                    assert await reader.read() == b""
                writer.close()
            await until(lambda: not local.server.server_state.connections)

    run(scenario)


def test_silent_connections_of_the_backlog_do_not_delay_the_shutdown() -> None:
    async def scenario() -> None:
        async with running(header_seconds=2 * PATIENCE) as local:
            asyncio.get_running_loop().remove_reader(local.listening)
            _, silent = await local.connect()
            local.server.should_exit = True
        silent.close()

    run(scenario)


def test_a_handshake_of_tls_is_finished_at_shutdown(
    certificate: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resdeploy.runtime.serving.http.connection.SHUTDOWN_SECONDS", PATIENCE)

    async def scenario() -> None:
        async with running(certificate, header_seconds=PATIENCE) as local:
            client = socket.create_connection(("127.0.0.1", local.port))
            await until(lambda: local.server.server_state.connections)
            local.server.should_exit = True
            await asyncio.sleep(0.3)  # three times as long as uvicorn waits for connections
            _, writer = await asyncio.open_connection(
                sock=client, ssl=client_over_tls(certificate), server_hostname="localhost"
            )
            writer.write(b"GET /1 HTTP/1.1\r\nConnection: close\r\n\r\n")
            await until(lambda: local.requests)
            writer.close()

    run(scenario)


def test_requests_are_answered_at_shutdown_without_file_handles() -> None:
    async def scenario() -> None:
        async with running(header_seconds=600) as local:
            local.free.clear()
            answer = asyncio.ensure_future(local.send(GET % 1))
            await until(lambda: local.requests)
            local.server._accept = Mock(side_effect=OSError(errno.EMFILE, "Too many open files"))
            local.server.should_exit = True
            await until(lambda: local.server._accept.called)
            local.free.set()
            assert b"200 OK" in await answer

    run(scenario)


def test_http_1_0_has_no_interim_answer() -> None:
    async def scenario() -> None:
        async with running(header_seconds=60) as local:
            for version, answers in ((0, 1), (1, 2)):
                head = (
                    b"POST / HTTP/1.%d\r\nExpect: 100-continue\r\nConnection: close\r\n" % version
                )
                answer = await local.send(head + b"Content-Length: 1\r\n\r\n", b"A")
                assert answer.count(b"HTTP/1.1 ") == answers

    run(scenario)


def test_many_small_chunks_are_refused_before_all_are_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsed: list[bytes] = []
    monkeypatch.setattr(LimitedProtocol, "on_body", lambda _, body: parsed.append(body))

    async def scenario() -> None:
        async with running(header_seconds=60, body_seconds=60) as local:
            await local.send(CHUNKED + b"1\r\nA\r\n" * 30_000)
            assert local.refused == [431]
            assert 0 < len(parsed) <= MAX_HEADER_BYTES // 2

    run(scenario)


def test_a_client_that_does_not_read_its_answer_is_disconnected() -> None:
    async def scenario() -> None:
        async with running() as local:
            _, writer = await local.connect()
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: local.requests)
            await until(lambda: not local.server.server_state.connections)
            writer.close()

    run(scenario)


def test_a_client_that_ends_its_sending_is_answered() -> None:
    async def scenario() -> None:
        errors: list[Any] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: errors.append(context))
        async with running() as local:
            for requests, statuses in (
                (GET % 1, [b"100", b"200"]),
                (GET % 1 + GET % 2, [b"100", b"200", b"200"]),
                (GET % 1 + b"GET", [b"100", b"200"]),
                ((GET % 1).replace(b"1.1", b"1.0"), []),  # it knows no interim answers
                (b"", []),
                ((GET % 1)[:-2], []),
                (POST + b"Content-Length: 2\r\n\r\nx", []),
            ):
                local.free.clear()
                local.requests.clear()
                reader, writer = await local.connect()
                writer.write(requests)
                if statuses:
                    await until(lambda: local.requests)
                writer.write_eof()
                await asyncio.sleep(0.01)
                local.free.set()
                answer = await reader.read()
                lines = [line for line in answer.split(b"\r\n") if b"HTTP/1.1 " in line]
                assert [line.rpartition(b"HTTP/1.1 ")[2][:3] for line in lines] == statuses
                writer.close()
        assert not errors

    run(scenario)


def test_a_pause_delays_requests_but_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    long = POST + b"A: " + bytes(5000).replace(b"\0", b"a") + b"\r\nContent-Length: 0\r\n\r\n"

    async def scenario() -> None:
        async with running() as local:
            monkeypatch.setattr(
                ConnectionTable,
                "pause_after_other_answer",
                lambda *_: PATIENCE if len(local.requests) >= 2 else 0.0,
            )
            reader, writer = await local.connect()
            writer.write(GET % 1 + GET % 2)
            await until(lambda: len(local.requests) == 2)
            writer.write(long)
            await asyncio.sleep(0.05)
            assert len(local.requests) == 2
            local.server.should_exit = True  # the pause ends
            assert (await reader.read()).count(b"200 OK") == 3
            writer.close()

    run(scenario)


def test_a_client_that_has_left_is_noticed() -> None:
    async def scenario() -> None:
        async with running() as local:
            local.free.clear()
            _, writer = await local.connect()
            writer.write(GET % 1)
            await until(lambda: local.requests)
            writer.close()
            await until(lambda: not local.server.server_state.connections)

    run(scenario)


def test_answers_that_nobody_reads_have_a_limit_together() -> None:
    async def scenario() -> None:
        async with running(body_seconds=PATIENCE, idle_seconds=PATIENCE, bodies_mib=30) as local:
            connections = local.server.server_state.connections
            writers = [(await local.connect())[1] for _ in range(4)]
            for writer in writers:  # the kernel itself takes some megabytes of each answer
                writer.transport.pause_reading()  # type: ignore[attr-defined]
                writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: len(local.requests) == 4 and len(connections) < 4)
            assert connections
            await until(
                lambda: (
                    sum(each.transport.get_write_buffer_size() for each in connections) <= 30 << 20
                )
            )
            for writer in writers:
                writer.transport.abort()

    run(scenario)


def test_idle_connections_give_way_to_new_ones() -> None:
    async def scenario() -> None:
        async with running(connections=8, header_seconds=60) as local:
            idle = [await local.connect() for _ in range(50)]
            close = b"GET /1 HTTP/1.1\r\nConnection: close\r\n\r\n"
            for _ in range(3):
                assert b"200 OK" in await local.send(close)
            assert len(local.server.server_state.connections) <= 9
            for _, writer in idle:
                writer.close()

    run(scenario)


def test_without_file_handles_the_server_tries_again_and_warns_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Exhausted:
        def accept(self) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        def fileno(self) -> int:
            return -1

    async def scenario() -> None:
        async with running(header_seconds=60) as local:
            _, writer = await local.connect()
            await until(lambda: local.server.server_state.connections)
            loop: Any = asyncio.get_running_loop()
            loop.remove_reader = lambda _: None
            for _ in range(5):
                local.server._accept_some(Exhausted())
            del loop.remove_reader
            await until(
                lambda: not local.server.server_state.connections
            )  # it gave its handle back
            writer.close()

    run(scenario)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "cannot accept connections: Too many open files"
    ]


def test_the_protocol_counts_what_it_discards_of_a_refused_body() -> None:
    async def scenario() -> None:
        async with running(max_body_mib=1, body_seconds=600) as local:

            async def refuse(scope: Any, receive: Any, send: Any) -> None:
                headers = [(b"content-length", b"0")]
                await send({"type": "http.response.start", "status": 413, "headers": headers})
                await send({"type": "http.response.body"})

            local.server.config.loaded_app = refuse
            answer = await local.send(
                POST + b"Content-Length: 99999999\r\n\r\n", *[b"x" * 65536] * 64
            )
            assert answer.startswith(b"HTTP/1.1 413 ") or not answer
            assert issubclass(LimitedProtocol, asyncio.Protocol)

    run(scenario)
