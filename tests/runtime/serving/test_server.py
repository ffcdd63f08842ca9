"""A server process: start, graceful shutdown, reload, and clients that misbehave."""

from __future__ import annotations

import gc
import http.client
import os
import shutil
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.machine.device import available_cores
from resdeploy.runtime.serving.http.connection import SHUTDOWN_SECONDS
from resdeploy.runtime.serving.server import exempt_from_collection
from tests.samples import SIZE
from tests.serving_process import PATIENCE, ServerProcess, is_running, picture, tensor_request

INFER = "/v2/models/tiny/infer"


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Load:
    """Clients that send requests continuously, half of them on persistent connections."""

    def __init__(self, server: ServerProcess, clients: int = 8) -> None:
        self.statuses: list[int] = []
        self.lost: list[str] = []
        self._port = server.port
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._send_requests, args=(number % 2 == 0,))
            for number in range(clients)
        ]

    def _send_requests(self, persistent: bool) -> None:
        body, headers = tensor_request(np.zeros((2, SIZE, SIZE, 3), np.uint8))
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        while not self._stop.is_set():
            used = connection.sock is not None
            sent = None
            opened = time.monotonic()
            try:
                if not used:
                    connection.connect()
            except ConnectionRefusedError:
                break  # the server has closed its socket and accepted nothing
            try:
                connection.request("POST", INFER, body, headers)
                sent = time.monotonic()
                answer = connection.getresponse()
                answer.read()
                self.statuses.append(answer.status)
                if not persistent or answer.will_close:
                    connection.close()
            except (OSError, http.client.HTTPException) as error:
                # A persistent connection may be closed just before a request: RFC 9112, 9.3.1.
                # A stopping server may also close a new one, if the client is this slow.
                slow = (sent or time.monotonic()) - opened >= SHUTDOWN_SECONDS
                if not ((used or slow) and isinstance(error, ConnectionError)):
                    self.lost.append(repr(error))
                break
        connection.close()

    def until_served(self, times: int) -> None:
        """Wait for `times` more successful responses."""
        enough = self.statuses.count(200) + times
        until(lambda: self.statuses.count(200) >= enough or bool(self.lost))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_stopped_under_load_answers_all_accepted_requests(
    tiny_bundle: Bundle, number: signal.Signals
) -> None:
    with ServerProcess(tiny_bundle.path, "--threads", 1) as server:
        server.until_ready()
        with Load(server) as load:
            load.until_served(50)
            server.send(number)
            code, document = server.result()
        assert code == 0
        assert load.lost == []
        assert set(load.statuses) <= {200, 503}
        assert load.statuses.count(200) >= 50
        assert document["images"] >= 2 * load.statuses.count(200)
        assert server.log[-1]["message"] == "stopped"


QUICK = (
    "from resdeploy.runtime.serving import server; server.LOADING_SECONDS = 0.001; "
    "from resdeploy.cli import main; main()"
)


def test_the_server_repeats_the_warnings_of_its_bundle(doubtful_bundle: Bundle) -> None:
    excess = ("--threads", 1, "--instances", 64)
    with ServerProcess(doubtful_bundle.path, *excess, code=QUICK) as server:
        server.until_ready()
        assert server.wait_for("loading")["model"] == "doubtful"  # every few seconds
        line = server.wait_for(lambda line: "exceed" in line["message"])
        assert f"exceed the {available_cores()} cores" in line["message"]
        line = server.wait_for("int8 deviates from FP32: agreement 90.6 %, limit 98 %")
        assert (line["level"], line["model"]) == ("warning", "doubtful")
        assert line["hint"] == "calibrate on more images"
        (model,) = server.ask("/v1/stats").json["models"]
        assert model["warnings"] == [{"message": line["message"], "hint": line["hint"]}]


def test_a_terminal_shows_short_lines_and_how_to_begin(doubtful_bundle: Bundle) -> None:
    with ServerProcess(doubtful_bundle.path, "--threads", 1, terminal=True) as server:
        server.wait_for(lambda line: line["message"].startswith("curl -F image=@PICTURE http"))
        shown = [line["message"] for line in server.log]
    assert shown[0].startswith("listening: host 127.0.0.1, port ")
    doubt = "warning: int8 deviates from FP32: agreement 90.6 %; figures and remedies: "
    assert f"{doubt}{doubtful_bundle.path}/report.html: model doubtful" in shown
    assert "/docs describes the interface), or type" in shown[-3]
    assert max(map(len, shown)) < 200


def test_a_reload_loses_no_request(tiny_bundle: Bundle, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_bundle.path, tmp_path / "tiny.bundle")
    with ServerProcess(copy, "--threads", 1) as server:
        server.until_ready()
        server.send(signal.SIGHUP)
        assert server.wait_for("unchanged")["model"] == "tiny"
        with Load(server, 4) as load:
            load.until_served(20)
            manifest = copy / "manifest.json"
            text = manifest.read_text()
            manifest.write_text("{}")
            server.send(signal.SIGHUP)
            server.wait_for(lambda line: "reload failed" in line["message"])
            manifest.write_text(text + "\n")
            server.send(signal.SIGHUP)
            until(lambda: sum(line["message"] == "serving" for line in server.log) == 2)
            load.until_served(20)
        assert load.lost == []
        assert set(load.statuses) == {200}
        code, document = server.stop()
        assert (code, document["reloads"]) == (0, 1)


# A server whose bundle hangs, or has another fault, in the process that checks it.
HANGING = """
import sys
from resdeploy.runtime.serving import loading_process, server
loading_process.python_command = lambda module, parent: (
    sys.executable, "-c", {code!r}, str(parent))
from resdeploy.cli import main; main()
"""
CHECKING = """
import os, time
from resdeploy.runtime.serving import loading_process
def open_signed(path, signer, inner=loading_process.open_signed):
    assert not (path / 'fault').exists(), 'a fault'
    if (path / 'hang').exists():
        (path / 'hang').write_text(str(os.getpid()))
        time.sleep(600)
    return inner(path, signer)
loading_process.open_signed = open_signed
loading_process.main()
"""


def test_a_reload_that_hangs_or_fails_stops_neither_later_reloads_nor_the_end(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_bundle.path, tmp_path / "tiny.bundle")
    manifest, hang = copy / "manifest.json", copy / "hang"

    def reload() -> None:
        manifest.write_text(manifest.read_text() + "\n")
        server.send(signal.SIGHUP)

    def until_hanging() -> str:
        """Return the id of the process that hangs."""
        until(lambda: bool(hang.read_text()))
        return hang.read_text()

    with ServerProcess(copy, "--threads", 1, code=HANGING.format(code=CHECKING)) as server:
        server.wait_for("listening")
        server.send(signal.SIGHUP)  # the model is not loaded yet
        server.until_ready()
        assert server.wait_for("unchanged")["model"] == "tiny"
        (copy / "fault").touch()
        reload()
        server.wait_for("reload failed, the previous bundle keeps serving: a fault")
        (copy / "fault").unlink()
        hang.touch()
        reload()
        first = until_hanging()
        hang.write_text("")
        reload()
        second = until_hanging()
        assert first != second
        until(lambda: not is_running(first))
        hang.unlink()
        server.send(signal.SIGHUP)
        until(lambda: sum(line["message"] == "serving" for line in server.log) == 2)
        until(lambda: not is_running(second))
        hang.touch()
        reload()
        third = until_hanging()
        assert server.ask("/v2/health/ready").status == 200
        assert server.stop()[0] == 0
        until(lambda: not is_running(third))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.bundle"], "nowhere.bundle does not exist"),
        (["{empty}"], "is a file, and a bundle is a folder"),
        (["{bundle}", "{bundle}"], "two bundles are called tiny"),
        (["{bundle}", "--host", "203.0.113.1"], "cannot listen on 203.0.113.1"),
        (["{bundle}", "--token-file", "nothing"], "nothing cannot be read: No such file"),
        (["{bundle}", "--token-file", "{empty}"], "the token is empty"),
        (
            ["{bundle}", "--tls-cert", "none", "--tls-key", "{empty}"],
            "none cannot be read: No such",
        ),
        (["{bundle}", "--tls-cert", "{empty}", "--tls-key", "{empty}"], "the certificate"),
        (["{bundle}", "--backend", "abacus"], "no backend 'abacus'"),
    ],
)
def test_a_failed_start_is_exit_1_with_one_error_line(
    tiny_bundle: Bundle, tmp_path: Path, arguments: list[str], message: str
) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n")
    filled = [text.format(bundle=tiny_bundle.path, empty=empty) for text in arguments]
    with ServerProcess(*filled) as server:
        code, document = server.result()
        assert code == 1
        assert message in document["error"]
        assert document["hint"]
        lines = [line["message"] for line in server.log]
        assert any(line.startswith("error: ") and message in line for line in lines), lines
        assert any(line.startswith("hint: ") for line in lines)
        assert "listening" not in lines


def test_a_port_in_use_is_reported(tiny_bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with ServerProcess(tiny_bundle.path, "--port", port) as server:
            assert server.result()[0] == 1
            assert f"port {port}: Address already in use" in server.log[0]["message"]
        with ServerProcess(tiny_bundle.path, "--port", 0, "--grpc-port", port) as server:
            assert server.result()[0] == 1
            errors = [line["message"] for line in server.log if "hint" not in line["message"]]
            assert f"port {port}: Address already in use" in errors[-1]


def test_several_models_and_a_token_from_the_environment(
    tiny_bundle: Bundle, tmp_path: Path, image_data: Path
) -> None:
    other = shutil.copytree(tiny_bundle.path, tmp_path / "other.bundle")
    variables = {"RESDEPLOY_TOKEN": "secret", "RESDEPLOY_SERVE_THREADS": "1"}
    with ServerProcess(tiny_bundle.path, other, environment=variables) as server:
        server.until_ready()
        first = server.log[0]
        assert (first["level"], first["message"].split()[-1]) == ("info", "RESDEPLOY_SERVE_THREADS")
        assert server.ask("/v2").status == 401
        token = {"Authorization": "Bearer secret"}
        for name in ("tiny", "other"):
            assert server.ask(f"/v2/models/{name}", headers=token).json["name"] == name
            reply = server.ask(f"/v1/classify?model={name}", picture(image_data), token)
            assert reply.json["model"] == name
        assert "secret" not in str(server.log)
        assert server.stop()[0] == 0


def test_systemd_is_notified(tiny_bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(PATIENCE)
        environment = {"NOTIFY_SOCKET": str(path)}
        with ServerProcess(tiny_bundle.path, environment=environment) as server:
            assert listener.recv(100) == b"READY=1"
            assert server.ask("/v2/health/ready").status == 200
            assert server.stop()[0] == 0
            assert listener.recv(100) == b"STOPPING=1"


def test_objects_that_stay_are_not_collected_again() -> None:
    class Cycle:
        def __init__(self) -> None:
            self.own = self

    try:
        cycle = Cycle()
        reference = weakref.ref(cycle)
        exempt_from_collection()
        assert not any(one is cycle for one in gc.get_objects())
        del cycle
        assert reference() is not None
        exempt_from_collection()  # after a reload
        assert reference() is None
    finally:
        gc.unfreeze()


def test_over_tls(tiny_bundle: Bundle, tmp_path: Path) -> None:
    import ssl
    import subprocess

    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, so no certificate can be made")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
            "-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost",
            "-addext", "subjectAltName=DNS:localhost",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    options = ("--tls-cert", certificate, "--tls-key", key, "--grpc-port", 0)
    with ServerProcess(tiny_bundle.path, *options) as server:
        trust = ssl.create_default_context(cafile=certificate)
        connection = http.client.HTTPSConnection("localhost", server.port, context=trust)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        connection.close()
        trust.maximum_version = ssl.TLSVersion.TLSv1_2
        for ciphers, accepted in (("ECDHE+AESGCM", True), ("ECDHE+AES:!AESGCM", False)):
            trust.set_ciphers(ciphers)
            connection = http.client.HTTPSConnection("localhost", server.port, context=trust)
            with nullcontext() if accepted else pytest.raises(ssl.SSLError):
                connection.connect()
            connection.close()
        import grpc

        from resdeploy.runtime.serving.grpc.messages import load_methods

        live = load_methods()["ServerLive"]
        trusted = grpc.ssl_channel_credentials(certificate.read_bytes())
        with grpc.secure_channel(f"localhost:{server.grpc_port}", trusted) as channel:
            stub = channel.unary_unary(
                "/inference.GRPCInferenceService/ServerLive",
                request_serializer=live.request.SerializeToString,
                response_deserializer=live.response.FromString,
            )
            assert stub(live.request()).live
        assert server.stop()[0] == 0


# Clients that misbehave


def connect(server: ServerProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)


def read_all(connection: socket.socket) -> bytes:
    data = b""
    try:
        while chunk := connection.recv(65536):
            data += chunk
    except ConnectionResetError:
        pass
    return data


def connect_and_ask(server: ServerProcess) -> socket.socket:
    """Return a connection after an answer.

    On a busy machine, this process may send its request after the limit for headers; then the
    server is right to close the connection, and another one is opened.
    """
    for _ in range(100):
        connection, answer = connect(server), b""
        with suppress(ConnectionError):
            connection.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
            while chunk := connection.recv(4096):
                answer += chunk
                if answer.endswith(b"}\n"):
                    return connection
        connection.close()
        assert not answer
    raise AssertionError("the server answers none of 100 requests")


@pytest.fixture(scope="module")
def strict(tiny_bundle: Bundle) -> Iterator[ServerProcess]:
    """Run a server with short time limits."""
    code = (
        "import dataclasses, sys; from resdeploy.runtime.serving import server; "
        "inner = server.serve; server.serve = lambda bundles, config, progress: inner(bundles, "
        "dataclasses.replace(config, header_seconds=1, body_seconds=2, idle_seconds=2, "
        "connections=20), progress); from resdeploy.cli import main; main()"
    )
    with ServerProcess(tiny_bundle.path, "--threads", 1, code=code) as server:
        yield server.until_ready()
        assert server.stop()[0] == 0


def test_headers_that_do_not_end_close_the_connection(strict: ServerProcess) -> None:
    with connect(strict) as silent, connect(strict) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\n")
        for _ in range(15):
            time.sleep(0.1)
            try:
                slow.sendall(b"X: y\r\n")
            except OSError:
                break
        assert read_all(silent) == b""
        assert b"200" not in read_all(slow)


def test_incomplete_headers_close_a_persistent_connection(strict: ServerProcess) -> None:
    with connect_and_ask(strict) as connection:
        connection.sendall(b"GET /hea")
        assert read_all(connection) == b""


def test_a_slow_body_is_408_and_closes_the_connection(strict: ServerProcess) -> None:
    with connect(strict) as connection:
        connection.sendall(b"POST /v1/classify HTTP/1.1\r\nContent-Length: 999\r\n\r\n")
        deadline = time.monotonic() + PATIENCE
        data = b""
        while time.monotonic() < deadline:
            try:
                connection.sendall(b"x")
                connection.settimeout(0.1)
                chunk = connection.recv(4096)
                if not chunk:
                    break
                data += chunk
            except TimeoutError:
                continue
            except OSError:
                break
        assert data.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() < deadline


def test_endless_headers_are_rejected(strict: ServerProcess) -> None:
    with connect(strict) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        sent = 0
        try:
            while sent < 64 << 20:
                sent += connection.send(b"y" * 65536)
        except OSError:
            pass
        assert sent < 8 << 20
        assert read_all(connection)[:12] in (b"", b"HTTP/1.1 431")


def test_random_bytes_are_400_and_truncated_requests_are_harmless(strict: ServerProcess) -> None:
    with connect(strict) as connection:
        connection.sendall(b"\x16\x03\x01\x00 not http\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")
    body, headers = tensor_request(np.zeros((1, SIZE, SIZE, 3), np.uint8))
    lines = [f"POST {INFER} HTTP/1.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    whole = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
    for length in range(1, len(whole), 97):
        with connect(strict) as connection:
            connection.sendall(whole[:length])
    until(lambda: status(strict, INFER, body, headers) == 200)


def status(server: ServerProcess, *request: Any) -> int | None:
    """Return the status; None if the connection was closed, because this client was too slow."""
    try:
        return server.ask(*request).status
    except (OSError, http.client.HTTPException):
        return None


def until_answered(server: ServerProcess) -> None:
    """Wait until the connections of earlier tests are gone."""
    until(lambda: status(server, "/v2") == 200)


def test_idle_connections_make_room_for_others(strict: ServerProcess) -> None:
    until_answered(strict)
    with ExitStack() as idle:
        for _ in range(3):
            for _ in range(60):  # the server keeps 20
                idle.enter_context(connect(strict))
            until_answered(strict)


def test_a_connection_without_requests_is_closed(strict: ServerProcess) -> None:
    start = time.monotonic()
    with connect_and_ask(strict) as connection:
        assert read_all(connection) == b""
        # The limit is 2 s after the response, not the 1 s for headers; timers are coarse.
        assert time.monotonic() - start > 1.8


def test_files_and_threads_are_released(server: ServerProcess, image_data: Path) -> None:
    def counts() -> tuple[int, int]:
        process = Path(f"/proc/{server.process.pid}")
        return len(os.listdir(process / "fd")), len(os.listdir(process / "task"))

    server.ask("/v1/classify", picture(image_data))
    before = counts()
    for number in range(60):
        server.ask("/v1/classify", picture(image_data)[: number * 7])
    # Connections end a little later; the decoder's pool grows to its full size.
    most = before[0] + 1, before[1] + 2
    until(lambda: all(now <= limit for now, limit in zip(counts(), most)))
