"""The server under load, beside the bare backend, LitServe and a plain FastAPI application.

    python -m benchmarks.serving --output docs/results/serving.json

A ResNet-34 of 1000 classes at 224 pixels with random weights, in INT8 where nothing else is said.
Load comes from processes of their own (serving_load.py) on the same machine, which therefore share
its cores with the server. The other servers get an environment of their own, made on first use.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from benchmarks.latency import make_bundle
from resdeploy.bundle import Bundle, open_bundle
from resdeploy.console import table
from resdeploy.contender import Contender
from resdeploy.cpu import read_cpu
from resdeploy.errors import BackendError
from resdeploy.export.proof import synthetic_images
from resdeploy.runtime.device import available_cores
from resdeploy.storage import write_file

HERE = Path(__file__).parent
REQUIREMENTS = (
    "litserve==0.2.19", "fastapi==0.165.0", "uvicorn==0.54.0", "python-multipart==0.0.34",
    "onnxruntime==1.32.0", "numpy==2.4.6", "pillow==13.0.0",
)  # fmt: skip
OURS = "resdeploy"
SHARES = (0.25, 0.5, 0.75, 0.9, 1.0, 1.25)
"""Offered loads, as parts of the capacity."""
OVERLOAD = 10
PATIENT = ("--max-wait-ms", 10_000)
"""Where clients wait for their answer before they ask again, nobody is to be refused."""
START_SECONDS = 120
PICTURE = (500, 375)  # of most pictures in ImageNet


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
class Request:
    """What a load sends again and again."""

    path: str
    file: Path
    content_type: str
    images: int = 1
    headers: tuple[str, ...] = ()


@dataclass(slots=True)
class Running:
    """A server that answers."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    def load(self, request: Request, seconds: float, mode: str, number: float) -> dict[str, Any]:
        """Run a load beside it, and what it reports."""
        done = subprocess.run(
            [
                sys.executable, HERE / "serving_load.py", str(self.port), request.path,
                request.file, request.content_type, str(seconds), mode, str(number),
                *request.headers,
            ],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def row(self, request: Request, seconds: float, mode: str, number: float) -> Row:
        """The same as a row."""
        found = self.load(request, seconds, mode, number)
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


@click.command()
@click.option("--bundle", "path", type=click.Path(path_type=Path), help="[default: a new one]")
@click.option("--batch", type=int, default=8, show_default=True, help="Images of a tensor request.")
@click.option("--clients", type=int, default=16, show_default=True, help="Of closed loops.")
@click.option("--seconds", type=float, default=10.0, show_default=True, help="For each load.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Of what is compared.")
@click.option("--overload-seconds", type=float, default=60.0, show_default=True)
@click.option(
    "--environment",
    type=click.Path(path_type=Path),
    default=Path("~/.cache/resdeploy/servers"),
    show_default=True,
    help="Where the other servers are installed.",
)
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    path: Path | None,
    batch: int,
    clients: int,
    seconds: float,
    rounds: int,
    overload_seconds: float,
    environment: Path,
    output: Path | None,
) -> None:
    """Measure, print, and write down."""
    python = make_environment(environment.expanduser())
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        bundle = open_bundle(path) if path else make_bundle(work, 224)
        tensors, picture = make_requests(bundle, work, batch)
        saturation = measure_saturation(bundle, tensors, rounds, seconds)
        layouts = measure_layouts(bundle, tensors, clients, seconds)
        pictures = measure_pictures(bundle, picture, python, clients, rounds, seconds)
        capacity = max(row.answered_per_second for row in pictures if row.contender == OURS)
        sweep, overload = measure_sweep(bundle, picture, capacity, seconds, overload_seconds)
    click.echo(f"tensors, {batch} in a request: {saturation_text(saturation)}\n")
    for title, rows in (("instances x threads", layouts), ("pictures", pictures), ("open", sweep)):
        click.echo(f"{title}\n{rows_text(rows)}\n")
    click.echo(overload_text(overload))
    if output is not None:
        document = {
            "date": date.today().isoformat(),
            "machine": {"cpu": read_cpu().model, "cores": available_cores()},
            "python": platform.python_version(),
            "others": REQUIREMENTS,
            "seconds": seconds,
            "clients": clients,
            "tensors": {"batch": batch, **saturation},
            "layouts": [asdict(row) for row in layouts],
            "pictures": [asdict(row) for row in pictures],
            "open": [asdict(row) for row in sweep],
            "overload": overload,
        }
        write_file(output, (json.dumps(document, indent=2) + "\n").encode())


def measure_saturation(
    bundle: Bundle, request: Request, rounds: int, seconds: float
) -> dict[str, Any]:
    """Images a second of the bare backend and of the server, in turns, at the same batch size."""
    threads = available_cores()
    arguments = [str(bundle.path), "onnxruntime-cpu", "int8-cpu", str(request.images), str(threads)]
    bare = Contender.start("bare", "resdeploy.runtime.contender", arguments, threads)
    rates: dict[str, list[float]] = {"bare": [], OURS: []}
    try:
        with start_ours(bundle, "--max-batch", request.images, *PATIENT) as server:
            for _ in range(rounds):
                times = bare.run_for(seconds / rounds)
                rates["bare"].append(1000 * request.images / float(np.mean(times)))
                row = server.row(request, seconds / rounds, "closed", 3)
                rates[OURS].append(row.answered_per_second)
    finally:
        bare.stop()
    shares = [ours / alone for ours, alone in zip(rates[OURS], rates["bare"])]
    return {"images_per_second": rates, "share": statistics.median(shares), "shares": shares}


def measure_layouts(bundle: Bundle, request: Request, clients: int, seconds: float) -> list[Row]:
    """How instances and threads share the cores."""
    cores = available_cores()
    rows = []
    for instances in sorted({1, 2, cores}):
        if cores % instances:
            continue
        share = ("--instances", instances, "--threads", cores // instances)
        with start_ours(bundle, *share, *PATIENT) as server:
            server.name = f"{instances} x {cores // instances}"
            rows += [
                server.row(request, seconds, "closed", number)
                for number in (1, max(1, clients // request.images))
            ]
    return rows


def measure_pictures(
    bundle: Bundle, request: Request, python: Path, clients: int, rounds: int, seconds: float
) -> list[Row]:
    """Every server with the same clients that send a picture, in turns."""
    rows: dict[str, list[Row]] = {}
    for _ in range(rounds):
        for name in contenders(available_cores()):
            with start(name, bundle, python) as server:
                own = request if name.startswith(OURS) else other_request(request)
                found = server.row(own, seconds / rounds, "closed", clients)
                rows.setdefault(name, []).append(found)
    return [middle(own) for own in rows.values()]


def measure_sweep(
    bundle: Bundle, request: Request, capacity: float, seconds: float, overload_seconds: float
) -> tuple[list[Row], dict[str, Any]]:
    """Latency against offered load, then far too much of it."""
    with start_ours(bundle) as server:
        rows = [server.row(request, seconds, "open", share * capacity) for share in SHARES]
        before = server.memory_mb()
        overloaded = server.row(request, overload_seconds, "open", OVERLOAD * capacity)
        time.sleep(1)
        healthy = ask(server.port, "/v2/health/ready") == 200
        after = server.row(request, 2, "closed", 1)
        at_capacity = next(row for row, share in zip(rows, SHARES) if share == 1.0)
        ratio = None
        if overloaded.p99_ms is not None and at_capacity.p99_ms is not None:
            ratio = overloaded.p99_ms / at_capacity.p99_ms
        return rows, {
            "row": asdict(overloaded),
            "capacity_p99_ms": at_capacity.p99_ms,
            "p99_ratio": ratio,
            "memory_mb_before": before,
            "memory_mb_after": server.memory_mb(),
            "healthy_after_1_s": healthy,
            "p50_ms_afterwards": after.p50_ms,
        }


def middle(rows: Sequence[Row]) -> Row:
    """The round with the median rate."""
    return sorted(rows, key=lambda row: row.answered_per_second)[len(rows) // 2]


def contenders(cores: int) -> tuple[str, ...]:
    """Ours as it comes and with one instance on all cores, and the others."""
    return (
        OURS, f"{OURS} 1 instance", "litserve 1 worker", f"litserve {cores} workers",
        "fastapi",
    )  # fmt: skip


@contextmanager
def start(name: str, bundle: Bundle, python: Path) -> Iterator[Running]:
    """A contender's server."""
    kind, count = name.split()[0], ([*name.split(), "1"])[1]
    if kind == OURS:
        options = ("--instances", count) if name != OURS else ()
        with start_ours(bundle, *options, *PATIENT) as server:
            server.name = name
            yield server
        return
    port = free_port()
    graph, manifest = bundle.path / "int8-cpu.onnx", bundle.path / "manifest.json"
    command: list[object] = [python, HERE / f"serving_{kind}.py", graph, manifest, port]
    if kind == "litserve":
        command += [count, 8]
    with started(name, command, port, "/docs") as server:
        yield server


@contextmanager
def start_ours(bundle: Bundle, *options: object) -> Iterator[Running]:
    """Our own server."""
    port = free_port()
    command = [
        sys.executable, "-m", "resdeploy", "serve", bundle.path, "--port", port,
        "--precision", "int8", "--no-access-log", *options,
    ]  # fmt: skip
    with started(OURS, command, port, "/v2/health/ready") as server:
        yield server


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


def make_requests(bundle: Bundle, work: Path, batch: int) -> tuple[Request, Request]:
    """A binary tensor request, and an upload of a JPEG file."""
    size = bundle.manifest.preprocessing.image_size
    images = synthetic_images(size, batch, seed=2)
    entry = {
        "name": "images",
        "datatype": "UINT8",
        "shape": list(images.shape),
        "parameters": {"binary_data_size": images.nbytes},
    }
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    (work / "tensors").write_bytes(head + images.tobytes())
    name = bundle.path.name.removesuffix(".bundle")
    tensors = Request(
        path=f"/v2/models/{name}/infer",
        file=work / "tensors",
        content_type="application/octet-stream",
        images=batch,
        headers=(f"Inference-Header-Content-Length: {len(head)}",),
    )
    photograph = Image.fromarray(synthetic_images(512, 1, seed=3)[0]).resize(PICTURE)
    photograph.save(work / "picture.jpg", quality=90)
    form = (
        b'--line\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n'
        b"Content-Type: image/jpeg\r\n\r\n%b\r\n--line--\r\n"
    )
    (work / "form").write_bytes(form % (work / "picture.jpg").read_bytes())
    kind = "multipart/form-data; boundary=line"
    return tensors, Request(path="/v1/classify", file=work / "form", content_type=kind)


def other_request(request: Request) -> Request:
    """The same upload, where the other servers expect it."""
    return Request(path="/classify", file=request.file, content_type=request.content_type)


def rows_text(rows: Sequence[Row]) -> str:
    """A line per load."""

    def ms(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f} ms"

    lines = [
        [
            row.contender,
            row.load,
            f"{row.offered_per_second:.1f}",
            f"{row.answered_per_second:.1f}",
            ms(row.p50_ms),
            ms(row.p95_ms),
            ms(row.p99_ms),
            f"{row.statuses.get('503', 0)}",
            f"{row.statuses.get('0', 0)}",
        ]
        for row in rows
    ]
    head = [
        "server", "load", "offered/s", "images/s", "p50", "p95", "p99", "refused", "unanswered",
    ]  # fmt: skip
    return table(head, lines)


def saturation_text(saturation: dict[str, Any]) -> str:
    """One line."""
    rates = {name: statistics.median(own) for name, own in saturation["images_per_second"].items()}
    return (
        f"{rates[OURS]:.1f} images/s, {100 * saturation['share']:.0f} % of the bare backend's "
        f"{rates['bare']:.1f}"
    )


def overload_text(overload: dict[str, Any]) -> str:
    """A few lines."""
    row = overload["row"]
    ratio = "-" if overload["p99_ratio"] is None else f"{overload['p99_ratio']:.2f}"
    return (
        f"{OVERLOAD} times the capacity: statuses {row['statuses']}, unanswered "
        f"{row['unanswered']}, p99 {row['p99_ms']:.0f} ms, {ratio} times that at capacity; "
        f"memory {overload['memory_mb_before']:.0f} to {overload['memory_mb_after']:.0f} MB; "
        f"healthy after 1 s: {overload['healthy_after_1_s']}"
    )


if __name__ == "__main__":
    main()
