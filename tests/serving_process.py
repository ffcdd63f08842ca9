"""A server in its own process, started as users start it, and a client for it."""

from __future__ import annotations

import http.client
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.results import read_document

# Timeout in seconds. A server is ready after 2 s, but on a busy machine after 20 s.
PATIENCE = 600.0  # no test waits so long, unless it fails; the machine may be very busy


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class ServerProcess:
    """A server process as a context manager; `log` has the lines of stderr."""

    def __init__(
        self,
        *arguments: object,
        environment: Mapping[str, str] | None = None,
        code: str = "from resdeploy.cli import main; main()",
        terminal: bool = False,
    ) -> None:
        """Start it; with `terminal`, its stderr is a terminal."""
        self.log: list[dict[str, Any]] = []
        self._lines = threading.Condition()
        theirs, ours = pty.openpty() if terminal else (None, subprocess.PIPE)
        self.process = subprocess.Popen(
            [
                sys.executable, "-c", code, "serve", "--port", "0", "--json",
                "--backend", "onnxruntime-cpu",  # a measurement would take seconds in each test
                *map(str, arguments),
            ],
            stdout=subprocess.PIPE, stderr=ours, text=True,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        if theirs is not None:
            os.close(ours)
            self.process.stderr = os.fdopen(theirs)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with suppress(OSError):  # the end of a terminal
            for line in self.process.stderr:
                try:
                    entry = json.loads(line)
                except ValueError:
                    entry = {"message": line.strip()}
                with self._lines:
                    self.log.append(entry)
                    self._lines.notify_all()
        with self._lines:
            self._lines.notify_all()

    def wait_for(self, message: str | Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the first log line with this message, or that satisfies the function."""
        matches = message if callable(message) else lambda line: line.get("message") == message
        deadline = time.monotonic() + PATIENCE
        with self._lines:
            while True:
                for line in self.log:
                    if matches(line):
                        return line
                left = deadline - time.monotonic()
                if left <= 0 or self.process.poll() is not None:
                    raise AssertionError(f"no line {message}: {self.log}")
                self._lines.wait(min(left, 0.2))

    @property
    def port(self) -> int:
        return int(self.wait_for("listening")["port"])

    @property
    def grpc_port(self) -> int:
        return int(self.wait_for("listening for gRPC")["port"])

    def ask(
        self,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        method: str | None = None,
    ) -> Reply:
        """Send one request on a new connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(
                method or ("GET" if body is None else "POST"), path, body, dict(headers or {})
            )
            answer = connection.getresponse()
            named = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, named, answer.read())
        finally:
            connection.close()

    def until_ready(self) -> ServerProcess:
        deadline = time.monotonic() + PATIENCE
        while self.ask("/v2/health/ready").status != 200:
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)
        return self

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> tuple[int, Any]:
        """Stop the server; return its exit code and the document on stdout."""
        if self.process.poll() is None:
            self.send(signal.SIGTERM)
        return self.result()

    def result(self) -> tuple[int, Any]:
        code = self.process.wait(PATIENCE)
        self._reader.join()
        assert self.process.stdout is not None
        text = self.process.stdout.read()
        return code, read_document(text) if text else None

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


def is_running(pid: str) -> bool:
    """Return True if a process runs; not if it has ended and nobody has waited for it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


def tensor_request(images: Any, **parameters: Any) -> tuple[bytes, dict[str, str]]:
    """Return the body and headers of a binary request."""
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "images",
                    "datatype": "UINT8",
                    "shape": list(images.shape),
                    "parameters": {"binary_data_size": images.nbytes},
                }
            ],
            "parameters": parameters,
        }
    ).encode()
    return head + images.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def picture(folder: Path) -> bytes:
    """Return a picture of a folder of labelled pictures."""
    return (folder / "val" / "red" / "000.png").read_bytes()


def form(*files: tuple[str, bytes]) -> tuple[bytes, dict[str, str]]:
    """Return the body and headers of a form with files, whose fields have the names of these."""
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, data in files
    ]
    return b"".join(parts) + b"--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}
