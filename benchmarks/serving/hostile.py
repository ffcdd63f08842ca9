"""Hostile connections to a server, with the latency of a probe and of a good client meanwhile.

    python -m benchmarks.serving.hostile BUNDLE --seconds 5

The attacks are endless trailers, chunk extensions and empty lines, pipelined requests, idle
connections, slow bodies, and JSON of empty lists; the first one is none, for comparison. With
`--overload`, all of them run at once, together with ten times the load that the server can answer,
and good clients of a third address send half of that load. Server and clients have cores of their
own then.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path

import click

from benchmarks.serving.malformed import MalformedRequests, footprint, send, status_of
from benchmarks.serving.payloads import tensor_request
from benchmarks.serving.servers import RunningServer, free_port, load_result, run_process
from resdeploy.bundle.bundle import Bundle, open_bundle

HOST = b" HTTP/1.1\r\nHost: localhost\r\n"
PROBE = b"GET /healthz" + HOST + b"Connection: close\r\n\r\n"
POST = b"POST /v1/classify" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
LISTS = (
    b'{"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [%b[]]}]}'
)
JSON = LISTS % (b"[]," * 3_900_000)
# Connections, the bytes that each sends first, and those that it repeats.
ATTACKS: dict[str, tuple[int, bytes, bytes]] = {
    "none": (0, b"", b""),
    "trailers": (1, CHUNKED + b"1\r\nA\r\n0\r\n", b"a:b\r\n" * 13_000),
    "chunk extensions": (1, CHUNKED + b"1;", b"a" * 65_536),
    "empty lines": (1, b"", b"\r\n" * 32_768),
    "pipelined requests": (30, b"", (b"GET /healthz" + HOST + b"\r\n") * 1_000),
    "idle connections": (2_000, b"", b""),
    "slow bodies": (200, POST + b"Content-Length: 99\r\n\r\n", b"x"),
    "JSON of empty lists": (1, b"", POST[:5] + b"%b" + HOST + b"Content-Length: %d\r\n\r\n%b"),
}
PAUSE_SECONDS = 0.02
# Another address than that of the good clients, because an address has a share of the connections.
ATTACKER, SURPLUS = "127.0.0.2", "127.0.0.3"


def measure_attack(
    port: int, pid: int, good: bytes, attack: str, seconds: float
) -> dict[str, object]:
    """Run one attack; return latencies in milliseconds, the peak of memory and of open files."""
    stop = time.monotonic() + seconds
    times: dict[str, list[float]] = {"probe": [], "good": []}
    wrong: list[str] = []
    memory, files = [footprint(pid).memory_mb], [0]

    def ask(name: str, request: bytes) -> None:
        while time.monotonic() < stop:
            start = time.perf_counter()
            if (status := status_of(send(port, request))) != "200":
                wrong.append(f"{name}: {status}")
            times[name].append(1000 * (time.perf_counter() - start))
            now = footprint(pid)
            memory.append(now.memory_mb)
            files.append(now.files)
            time.sleep(PAUSE_SECONDS)

    clients = [
        threading.Thread(target=ask, args=pair) for pair in (("probe", PROBE), ("good", good))
    ]
    for client in clients:
        client.start()
    _attack(port, *ATTACKS[attack], stop)
    for client in clients:
        client.join()
    result: dict[str, object] = {"attack": attack, "wrong": wrong[:3]}
    for name, latencies in times.items():
        ordered = sorted(latencies)
        result[f"{name}_p99_ms"] = round(ordered[int(0.99 * len(ordered))], 1)
        result[f"{name}_max_ms"] = round(ordered[-1], 1)
    return {**result, "more_mb": round(max(memory) - memory[0], 1), "files": max(files)}


def _attack(port: int, count: int, first: bytes, again: bytes, stop: float) -> None:
    with ExitStack() as stack:
        connections: list[socket.socket] = []
        while time.monotonic() < stop:
            with suppress(OSError):
                while len(connections) < count and time.monotonic() < stop:
                    connection = socket.create_connection(
                        ("127.0.0.1", port), timeout=1, source_address=(ATTACKER, 0)
                    )
                    connections.append(stack.enter_context(connection))
                    connection.sendall(first)
            for connection in list(connections) if again else ():
                try:
                    connection.sendall(again)
                except OSError:
                    connections.remove(connection)  # the next round opens another one
                    connection.close()
            time.sleep(1 if len(again) <= 1 else 0)


def measure_overload(server: RunningServer, bundle: Bundle, seconds: float) -> dict[str, object]:
    """Run ten times the capacity and all attacks at once; return what became of good requests."""
    with tempfile.TemporaryDirectory() as folder:
        request = tensor_request(bundle, Path(folder), 1)
        capacity = server.row(request, 5, "closed", 8).answered_per_second
        quiet = server.row(request, 5, "open", capacity / 2)
        before = footprint(server.process.pid)
        load = server.load(request, seconds, "open", 10 * capacity, SURPLUS)
        stop = time.monotonic() + seconds
        attackers = [
            threading.Thread(target=_attack, args=(server.port, *ATTACKS[name], stop))
            for name in ATTACKS
            if name != "none"
        ]
        for attacker in attackers:
            attacker.start()
        good = server.row(request, seconds, "open", capacity / 2)
        busy = load_result(load)
        for attacker in attackers:
            attacker.join()
        time.sleep(5)
        calm = server.row(request, 5, "open", capacity / 2)
    return {
        "capacity": round(capacity, 1), "quiet_p99_ms": quiet.p99_ms, "good_p99_ms": good.p99_ms,
        "good_statuses": good.statuses, "good_unanswered": good.unanswered,
        "afterwards_p99_ms": calm.p99_ms, "statuses": busy["statuses"],
        "unanswered": busy["unanswered"], "before": asdict(before),
        "after": asdict(footprint(server.process.pid)),
    }  # fmt: skip


@click.command(context_settings={"show_default": True})
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--seconds", default=5.0, help="Duration of each attack.")
@click.option("--overload", is_flag=True, help="Run all attacks at once, and an overload.")
def main(path: Path, seconds: float, overload: bool) -> None:
    """Attack a new server for BUNDLE in each way; print one JSON line for each attack."""
    name, bundle = path.resolve().name.removesuffix(".bundle"), open_bundle(path)
    good = MalformedRequests(bundle, name).valid()
    _, first, form = ATTACKS["JSON of empty lists"]
    infer = form % (f"/v2/models/{name}/infer".encode(), len(JSON), JSON)
    ATTACKS["JSON of empty lists"] = (1, first, infer)
    for attack in ["none"] if overload else ATTACKS:
        port = free_port()
        command = [sys.executable, "-m", "resdeploy", "serve", path, "--port", port]
        cores = sorted(os.sched_getaffinity(0))
        if overload and len(cores) > 1:
            command = ["taskset", "-c", ",".join(map(str, cores[: len(cores) // 2])), *command]
            os.sched_setaffinity(0, cores[len(cores) // 2 :])
        with run_process("the server", command, port, "/v2/health/ready") as server:
            if overload:
                result = measure_overload(server, bundle, seconds)
            else:
                result = measure_attack(port, server.process.pid, good, attack, seconds)
            click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
