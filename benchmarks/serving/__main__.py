"""Throughput and latency of the server, the bare backend, LitServe and a FastAPI application.

    python -m benchmarks.serving tensors --bundle r34.bundle --output docs/results/serving.json

Without --bundle the model is an INT8 ResNet-34 with 1000 classes and random weights. Each part
takes minutes and replaces its own section of the output: `tensors` (the bare backend, instances
and threads), `pictures` (all servers with the same JPEG file), `load` (latency against offered
load, then ten times the capacity, then SIGTERM). Load generators (load.py) are separate processes
on the same machine, so they share its cores with the server. The other servers get their own
virtual environment, which is created on first use.
"""

from __future__ import annotations

import json
import platform
import signal
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.environment import make_environment
from benchmarks.latency import make_bundle
from benchmarks.serving.malformed import footprint
from benchmarks.serving.payloads import Request, picture_request, tensor_request
from benchmarks.serving.servers import (
    FASTAPI,
    LITSERVE,
    NO_REJECTION,
    OURS,
    REQUIREMENTS,
    LoadResult,
    Server,
    get_status,
    load_result,
    run_ours,
    run_server,
)
from resdeploy.benchmark_process.worker_process import Contender, Worker
from resdeploy.benchmark_process.workload import Workload
from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.json_documents import write_document
from resdeploy.machine.cpu import read_cpu
from resdeploy.machine.device import available_cores
from resdeploy.tables import table

SHARES = (0.25, 0.5, 0.75, 0.9, 1.0, 1.25)
"""Offered loads as fractions of the capacity."""
OVERLOAD = 10
STOP_LOAD_SECONDS = 4.0
PATH = click.Path(path_type=Path)


@click.command(context_settings={"show_default": True})
@click.argument("part", type=click.Choice(["tensors", "pictures", "load"]))
@click.option("--bundle", "path", type=PATH, help="Bundle to serve.  [default: a new one]")
@click.option("--batch", default=8, help="Images per tensor request.")
@click.option(
    "--picture",
    default="500x375",  # the most frequent size in ImageNet
    callback=lambda context, parameter, text: tuple(map(int, text.split("x"))),
    help="Width and height in pixels.",
)
@click.option("--plain", is_flag=True, help="Also measure servers with torchvision's decoding.")
@click.option("--clients", default=16, help="Clients of a closed loop.")
@click.option("--seconds", default=10.0, help="Duration of each load.")
@click.option("--rounds", default=5, help="Rounds of a comparison.")
@click.option("--overload-seconds", default=60.0, help="Duration of the overload.")
@click.option(
    "--environment",
    type=PATH,
    default=Path("~/.cache/resdeploy/servers"),
    help="Virtual environment of the other servers.",
)
@click.option("--output", type=PATH, help="JSON file to update.")
def main(
    part: str,
    path: Path | None,
    batch: int,
    picture: tuple[int, int],
    plain: bool,
    clients: int,
    seconds: float,
    rounds: int,
    overload_seconds: float,
    environment: Path,
    output: Path | None,
) -> None:
    """Measure one part, print the results and update the output file."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        bundle = open_bundle(path) if path else make_bundle(work, 224)
        upload = picture_request(work, picture)
        name = part
        if part == "tensors":
            tensors = tensor_request(bundle, work, batch)
            saturation = measure_saturation(bundle, tensors, rounds, seconds)
            layouts = measure_layouts(bundle, tensors, clients, seconds)
            click.echo(f"{batch} images in a request: {saturation_text(saturation)}\n")
            click.echo(f"instances x threads\n{rows_text(layouts)}")
            results = {"batch": batch, **saturation, "layouts": layouts}
        elif part == "pictures":
            python = make_environment(environment.expanduser(), REQUIREMENTS)
            servers = compared_servers(available_cores(), plain=plain)
            rows = measure_pictures(bundle, upload, servers, python, clients, rounds, seconds)
            click.echo(rows_text(rows))
            size = bundle.manifest.preprocessing.image_size
            name = f"pictures of {picture[0]}x{picture[1]}, network of {size}"
            results = {"clients": clients, "rows": rows}
        else:
            results = measure_load(bundle, upload, clients, seconds, overload_seconds)
            click.echo(load_text(results))
    if output is not None:
        write_part(output, name, {"date": date.today().isoformat(), "seconds": seconds, **results})


def write_part(output: Path, name: str, results: dict[str, Any]) -> None:
    """Replace one part of the output file and keep the others."""
    document = json.loads(output.read_bytes()) if output.exists() else {}
    document |= {
        "machine": {"cpu": read_cpu().model, "cores": available_cores()},
        "python": platform.python_version(),
        "others": REQUIREMENTS,
        name: results,
    }
    write_document(output, document)


def measure_saturation(
    bundle: Bundle, request: Request, rounds: int, seconds: float
) -> dict[str, Any]:
    """Measure images/s of the bare backend and of the server alternately, at the same batch size.

    The bare backend runs as one process on all cores, and as one process per core.
    """
    cores = available_cores()
    layouts = {f"bare {count} x {cores // count}": count for count in sorted({1, cores})}
    rates: dict[str, list[float]] = {name: [] for name in (*layouts, OURS)}
    bare: dict[str, list[Contender]] = {name: [] for name in layouts}
    with ExitStack() as stack:
        for name, count in layouts.items():
            threads = cores // count
            workload = Workload(bundle=bundle.path, batch=request.images, threads=threads)
            arguments = ["onnxruntime-cpu", "int8-cpu", *workload.to_arguments()]
            for _ in range(count):
                bare[name].append(Contender.start(name, Worker.RUNTIME, arguments, threads))
                stack.callback(bare[name][-1].stop)
        server = stack.enter_context(run_ours(bundle, "--max-batch", request.images, *NO_REJECTION))
        for _ in range(rounds):
            for name, contenders in bare.items():
                rates[name].append(rate_of(contenders, request.images, seconds / rounds))
            row = server.row(request, seconds / rounds, "closed", cores + 1)
            rates[OURS].append(row.answered_per_second)
    shares = [ours / max(bare_rates) for *bare_rates, ours in zip(*rates.values())]
    return {"images_per_second": rates, "share": statistics.median(shares), "shares": shares}


def rate_of(contenders: Sequence[Contender], batch: int, seconds: float) -> float:
    """Return the total images/s of contenders that run concurrently."""
    with ThreadPoolExecutor(len(contenders)) as pool:
        times = pool.map(lambda contender: contender.run_for(seconds), contenders)
        return sum(1000 * batch / float(np.mean(own)) for own in times)


def measure_layouts(
    bundle: Bundle, request: Request, clients: int, seconds: float
) -> list[LoadResult]:
    """Measure the server with the cores divided among 1, 2 and more instances."""
    cores = available_cores()
    rows = []
    for instances in (count for count in sorted({1, 2, cores}) if cores % count == 0):
        share = ("--instances", instances, "--threads", cores // instances)
        with run_ours(bundle, *share, *NO_REJECTION) as server:
            server.name = f"{instances} x {cores // instances}"
            rows += [
                server.row(request, seconds, "closed", number)
                for number in (1, max(1, clients // request.images))
            ]
    return rows


def measure_pictures(
    bundle: Bundle,
    request: Request,
    servers: Sequence[Server],
    python: Path,
    clients: int,
    rounds: int,
    seconds: float,
) -> list[LoadResult]:
    """Measure all servers alternately, with clients that send a picture."""
    rows: dict[Server, list[LoadResult]] = {server: [] for server in servers}
    for _ in range(rounds):
        for server, own in rows.items():
            with run_server(server, bundle, python) as running:
                sent = request if server.kind == OURS else replace(request, path="/classify")
                own.append(running.row(sent, seconds / rounds, "closed", clients))
    return [median_round(own) for own in rows.values()]


def measure_load(
    bundle: Bundle, request: Request, clients: int, seconds: float, overload_seconds: float
) -> dict[str, Any]:
    """Measure latency against offered load, then an overload, then a stop under load."""
    with run_ours(bundle, *NO_REJECTION) as server:
        capacity = server.row(request, seconds, "closed", clients).answered_per_second
    with run_ours(bundle) as server:
        rows = [server.row(request, seconds, "open", share * capacity) for share in SHARES]
        before = footprint(server.process.pid).memory_mb
        overloaded = server.row(request, overload_seconds, "open", OVERLOAD * capacity)
        time.sleep(1)
        healthy = get_status(server.port, "/v2/health/ready") == 200
        after = server.row(request, 2, "closed", 1)
        memory = footprint(server.process.pid).memory_mb
        load = server.load(request, STOP_LOAD_SECONDS, "closed", clients)
        time.sleep(STOP_LOAD_SECONDS - 0.5)
        server.process.send_signal(signal.SIGTERM)
        stopped = load_result(load)
        code = server.process.wait()
    p99_ms = rows[SHARES.index(1.0)].p99_ms
    # A refused connection was not accepted, so it is not lost.
    lost = sum(count for reason, count in stopped["unanswered"].items() if "Refused" not in reason)
    return {
        "capacity": capacity,
        "open": rows,
        "overload": {
            "row": overloaded,
            "capacity_p99_ms": p99_ms,
            "p99_ratio": overloaded.p99_ms / p99_ms if overloaded.p99_ms and p99_ms else None,
            "memory_mb_before": before,
            "memory_mb_after": memory,
            "healthy_after_1_s": healthy,
            "p50_ms_afterwards": after.p50_ms,
        },
        "stopped": {"statuses": stopped["statuses"], "lost": lost, "exit_code": code},
    }


def median_round(rows: Sequence[LoadResult]) -> LoadResult:
    """Return the round with the median rate."""
    return sorted(rows, key=lambda row: row.answered_per_second)[len(rows) // 2]


def compared_servers(cores: int, *, plain: bool) -> list[Server]:
    """Return our server with its defaults and with one instance, and the other servers."""
    others = [Server(kind=LITSERVE, workers=count) for count in sorted({1, cores})]
    others.append(Server(kind=FASTAPI))
    if plain:
        others += [replace(other, plain=True) for other in others]
    return [Server(kind=OURS), Server(kind=OURS, workers=1), *others]


def rows_text(rows: Sequence[LoadResult]) -> str:
    """Return a table with a row per load."""

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
        "server", "load", "offered/s", "images/s", "p50", "p95", "p99", "rejected", "unanswered",
    ]  # fmt: skip
    return table(head, lines)


def saturation_text(saturation: dict[str, Any]) -> str:
    """Return the throughput and its ratio to the bare backend as one line."""
    rates = {name: statistics.median(own) for name, own in saturation["images_per_second"].items()}
    ours = rates.pop(OURS)
    bare = ", ".join(f"{name}: {rate:.1f}" for name, rate in rates.items())
    share = f"{100 * saturation['share']:.0f} %"
    return f"{ours:.1f} images/s, {share} of the faster bare backend ({bare})"


def load_text(results: dict[str, Any]) -> str:
    """Return the results of `measure_load` as a table and a few lines."""
    overload, stopped = results["overload"], results["stopped"]
    row = overload["row"]
    ratio = "-" if overload["p99_ratio"] is None else f"{overload['p99_ratio']:.2f}"
    return (
        f"{rows_text(results['open'])}\n\n"
        f"{OVERLOAD} times the capacity of {results['capacity']:.1f} images/s: statuses "
        f"{row.statuses}, unanswered {row.unanswered}, p99 {row.p99_ms:.0f} ms, {ratio} "
        f"times that at capacity; memory {overload['memory_mb_before']:.0f} to "
        f"{overload['memory_mb_after']:.0f} MB; healthy after 1 s: "
        f"{overload['healthy_after_1_s']}\n"
        f"stopped under load: statuses {stopped['statuses']}, {stopped['lost']} lost, exit code "
        f"{stopped['exit_code']}"
    )


if __name__ == "__main__":
    main()
