"""Servers under test, each a process of its own: ours, and the same model behind others."""

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

import click

from benchmarks.serving.payloads import Request
from resdeploy.bundle.bundle import Bundle
from resdeploy.errors import BackendError

HERE = Path(__file__).parent
REQUIREMENTS = (
    "litserve==0.2.19", "fastapi==0.165.0", "uvicorn==0.54.0", "python-multipart==0.0.34",
    "onnxruntime==1.32.0", "numpy==2.4.6", "pillow==13.0.0",
)  # fmt: skip
OURS = "resdeploy"
LITSERVE, FASTAPI = "litserve", "fastapi"
LITSERVE_BATCH = 8
PATIENT = ("--max-wait-ms", 10_000)
"""Where clients wait for their answer before they ask again, nobody is to be refused."""
START_SECONDS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One load on one server."""

    contender: str
    load: str
    offered_per_second: float
    answered_per_second: float
    """Images."""
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    statuses: dict[str, int]
    unanswered: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What is to be started."""

    kind: str
    workers: int | None = None
    """Of LitServe: processes; of ours: instances, None for its own choice."""
    plain: bool = False
    """Whether it decodes as torchvision's examples do, rather than with resdeploy's function."""

    @property
    def name(self) -> str:
        """For tables."""
        unit = "instance" if self.kind == OURS else "worker"
        count = "" if self.workers is None else f" {self.workers} {unit}"
        plural = "s" if self.workers not in (None, 1) else ""
        return f"{self.kind}{count}{plural}{', plain decoding' if self.plain else ''}"


@dataclass(slots=True)
class Running:
    """A server that answers."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    def load(
        self, request: Request, seconds: float, mode: str, number: float
    ) -> subprocess.Popen[bytes]:
        """Start a load beside it; it prints what it saw."""
        return subprocess.Popen(
            [
                sys.executable, HERE / "serving_load.py", str(self.port), request.path,
                request.file, request.content_type, str(seconds), mode, str(number),
                *request.headers,
            ],
            stdout=subprocess.PIPE,
        )  # fmt: skip

    def row(self, request: Request, seconds: float, mode: str, number: float) -> Row:
        """Run a load to its end."""
        found = result(self.load(request, seconds, mode, number))
        return Row(
            contender=self.name,
            load=f"{mode} {number:.4g}",
            offered_per_second=request.images * found["offered_per_second"],
            answered_per_second=request.images * found["answered_per_second"],
            p50_ms=found["p50_ms"],
            p95_ms=found["p95_ms"],
            p99_ms=found["p99_ms"],
            statuses=found["statuses"],
            unanswered=found["unanswered"],
        )

    def memory_mb(self) -> float:
        """Resident memory of its main process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024


def result(load: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What a load saw, once it has ended."""
    printed, _ = load.communicate()
    if load.returncode:
        raise BackendError(f"the load ended with exit code {load.returncode}")
    document: dict[str, Any] = json.loads(printed)
    return document


@contextmanager
def start(server: Server, bundle: Bundle, python: Path) -> Iterator[Running]:
    """Run a server; `python` has the other ones."""
    if server.kind == OURS:
        options = ("--instances", server.workers) if server.workers else ()
        with start_ours(bundle, *options, *PATIENT) as running:
            running.name = server.name
            yield running
        return
    port = free_port()
    graph, manifest = bundle.path / "int8-cpu.onnx", bundle.path / "manifest.json"
    decoding = "plain" if server.plain else OURS
    command: list[object] = [python, HERE / f"serving_{server.kind}.py", graph, manifest, port]
    command += [decoding]
    if server.kind == LITSERVE:
        command += [server.workers, LITSERVE_BATCH]
    with started(server.name, command, port, "/docs") as running:
        yield running


@contextmanager
def start_ours(bundle: Bundle, *options: object) -> Iterator[Running]:
    """Run our own server."""
    port = free_port()
    command = [
        sys.executable, "-m", "resdeploy", "serve", bundle.path, "--port", port,
        "--precision", "int8", "--no-access-log", *options,
    ]  # fmt: skip
    with started(OURS, command, port, "/v2/health/ready") as running:
        yield running


@contextmanager
def started(name: str, command: Sequence[object], port: int, ready_path: str) -> Iterator[Running]:
    """A process that answers on `ready_path`, until it is not needed any more."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=log, stderr=log, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + START_SECONDS
            while ask(port, ready_path) != 200:
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    said = log.read()[-2000:].decode(errors="replace")
                    raise BackendError(f"{name} does not answer: {said}")
                time.sleep(0.1)
            yield Running(name, port, process)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def ask(port: int, path: str) -> int:
    """The status of a GET; 0 where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
            return int(reply.status)
    except OSError:
        return 0


def free_port() -> int:
    """One that nobody listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def make_environment(folder: Path) -> Path:
    """A Python that has the other servers; installed on first use."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        click.echo(f"installing LitServe and FastAPI into {folder}", err=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
        (folder / "ready").touch()
    return python
