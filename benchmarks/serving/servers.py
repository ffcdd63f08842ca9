"""The measured servers, each in its own process: ours and others with the same model."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.payloads import Request
from resdeploy.bundle.bundle import Bundle
from resdeploy.errors import BackendError
from resdeploy.tables import plural

HERE = Path(__file__).parent
REQUIREMENTS = (
    "litserve==0.2.19", "fastapi==0.165.0", "uvicorn==0.54.0", "python-multipart==0.0.34",
    "onnxruntime==1.32.0", "numpy==2.4.6", "pillow==13.0.0", "msgspec==0.22.0",
)  # fmt: skip
OURS = "resdeploy"
LITSERVE, FASTAPI = "litserve", "fastapi"
LITSERVE_BATCH = 8
NO_REJECTION = ("--max-wait-ms", 10_000)
"""Options for closed loops, in which no request may be rejected."""
START_SECONDS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """The results of one load on one server."""

    contender: str
    load: str
    offered_per_second: float
    answered_per_second: float
    """Answered images per second."""
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    statuses: dict[str, int]
    unanswered: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server and its variant."""

    kind: str
    workers: int | None = None
    """Number of LitServe's processes or of our instances; None for the default."""
    plain: bool = False
    """True to decode as torchvision's examples do, False to use resdeploy's function."""

    @property
    def name(self) -> str:
        """Name in tables."""
        unit = "instance" if self.kind == OURS else "worker"
        count = "" if self.workers is None else f" {plural(self.workers, unit)}"
        return f"{self.kind}{count}{', plain decoding' if self.plain else ''}"


@dataclass(slots=True)
class RunningServer:
    name: str
    port: int
    process: subprocess.Popen[bytes]

    def load(
        self,
        request: Request,
        seconds: float,
        mode: str,
        number: float,
        source: str = "127.0.0.1",
    ) -> subprocess.Popen[bytes]:
        """Start a load generator, which prints its results."""
        return subprocess.Popen(
            [
                sys.executable, HERE / "load.py", str(self.port), request.path,
                request.file, request.content_type, str(seconds), mode, str(number),
                source, *request.headers,
            ],
            stdout=subprocess.PIPE,
        )  # fmt: skip

    def row(self, request: Request, seconds: float, mode: str, number: float) -> LoadResult:
        """Run a load and return its results."""
        results = load_result(self.load(request, seconds, mode, number))
        return LoadResult(
            contender=self.name,
            load=f"{mode} {number:.4g}",
            offered_per_second=request.images * results.pop("offered_per_second"),
            answered_per_second=request.images * results.pop("answered_per_second"),
            **results,
        )


def load_result(load: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Wait for a load generator and return its results."""
    printed, _ = load.communicate()
    if load.returncode:
        raise BackendError(f"the load ended with exit code {load.returncode}")
    return dict(json.loads(printed))


@contextmanager
def run_server(server: Server, bundle: Bundle, python: Path) -> Iterator[RunningServer]:
    """Run a server; `python` is the interpreter of the other servers."""
    if server.kind == OURS:
        options = ("--instances", server.workers) if server.workers else ()
        with run_ours(bundle, *options, *NO_REJECTION) as running:
            running.name = server.name
            yield running
        return
    port = free_port()
    graph, manifest = bundle.path / "int8-cpu.onnx", bundle.path / "manifest.json"
    decoding = "plain" if server.plain else OURS
    batching = (server.workers, LITSERVE_BATCH) if server.kind == LITSERVE else ()
    command = [
        python, HERE / f"peer_{server.kind}.py", graph, manifest, port, decoding, *batching
    ]  # fmt: skip
    with run_process(server.name, command, port, "/docs") as running:
        yield running


@contextmanager
def run_ours(bundle: Bundle, *options: object) -> Iterator[RunningServer]:
    """Run our server."""
    port = free_port()
    command = [
        sys.executable, "-m", "resdeploy", "serve", bundle.path, "--exact", "--port", port,
        "--precision", "int8", "--no-access-log", *options,
    ]  # fmt: skip
    with run_process(OURS, command, port, "/v2/health/ready") as running:
        yield running


@contextmanager
def run_process(
    name: str, command: Sequence[object], port: int, ready_path: str
) -> Iterator[RunningServer]:
    """Run a server process inside the context, after it has answered on `ready_path`."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=log, stderr=log, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + START_SECONDS
            while get_status(port, ready_path) != 200:
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    output = log.read()[-2000:].decode(errors="replace")
                    raise BackendError(f"{name} does not answer: {output}")
                time.sleep(0.1)
            yield RunningServer(name, port, process)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def get_status(port: int, path: str) -> int:
    """Return the status of a GET request; 0 if there is no answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
            return int(reply.status)
    except OSError:
        return 0


def free_port() -> int:
    """Return a port on which no process listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
