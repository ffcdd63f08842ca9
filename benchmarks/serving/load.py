"""A load generator for an HTTP server: an asyncio client in its own process.

    python benchmarks/serving/load.py PORT PATH BODY_FILE CONTENT_TYPE SECONDS MODE NUMBER SOURCE
        [HEADER]

SOURCE is the clients' address. In MODE `closed`, NUMBER clients send the next request as soon as
the last one is answered. In MODE
`open`, requests are sent at random times, NUMBER per second on average, whatever the server does;
latency counts from the time when a request was due, so that a stalling server cannot reduce the
measured load. The script prints one JSON document, and needs only the standard library.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

WARM_UP_SECONDS = 0.5
TIMEOUT_SECONDS = 30.0  # a request without an answer after this time counts as unanswered
# In an open loop; further requests wait for a connection. The server closes idle connections above
# 768 of one address, and a request that meets that has no answer.
MAX_CONNECTIONS = 700


@dataclass
class Tally:
    """The latencies and failures of the requests after the warm-up."""

    begins: float
    latencies: dict[int, list[float]] = field(default_factory=dict)
    """Latencies in milliseconds by status; status 0 for requests without an answer."""
    reasons: Counter[str] = field(default_factory=Counter)

    def record(self, sent: float, status: int) -> None:
        if sent >= self.begins:
            elapsed = 1000 * (time.perf_counter() - sent)
            self.latencies.setdefault(status, []).append(elapsed)


@dataclass
class Target:
    """A request that is sent many times, and its idle connections."""

    port: int
    request: bytes
    source: str
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def send(self, tally: Tally, sent: float) -> None:
        """Send the request once, on a persistent connection."""
        connection = None
        keep = False
        try:
            connection = (
                self.idle.pop()
                if self.idle
                else await asyncio.open_connection(
                    "127.0.0.1", self.port, local_addr=(self.source, 0)
                )
            )
            status, keep = await asyncio.wait_for(self._exchange(*connection), TIMEOUT_SECONDS)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
            tally.record(sent, 0)
            tally.reasons[type(error).__name__] += 1
        else:
            tally.record(sent, status)
        if connection is not None and keep:
            self.idle.append(connection)
        elif connection is not None:
            connection[1].close()

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[int, bool]:
        writer.write(self.request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        lines = head.split(b"\r\n")
        headers = dict(line.split(b": ", 1) for line in lines[1:] if b": " in line)
        await reader.readexactly(int(headers.get(b"content-length", 0)))
        return int(lines[0].split()[1]), headers.get(b"connection") != b"close"


async def closed_loop(target: Target, tally: Tally, ends: float, clients: float) -> None:
    """Run `clients` clients, each with one request at a time."""

    async def client() -> None:
        while (now := time.perf_counter()) < ends:
            await target.send(tally, now)

    await asyncio.gather(*(client() for _ in range(int(clients))))


async def open_loop(target: Target, tally: Tally, ends: float, rate: float) -> None:
    """Send requests at random times, `rate` per second on average."""
    generator = random.Random(0)
    slots = asyncio.Semaphore(MAX_CONNECTIONS)

    async def request(sent: float) -> None:
        async with slots:
            await target.send(tally, sent)

    pending = set()
    due = time.perf_counter()
    while due < ends:
        due += generator.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.ensure_future(request(due))
        pending.add(task)
        task.add_done_callback(pending.discard)
    await asyncio.gather(*pending)


def summarise_load(tally: Tally, seconds: float) -> dict[str, object]:
    """Return rates and percentiles."""
    answered = sorted(tally.latencies.get(200, ()))

    def percentile(fraction: float) -> float | None:
        return answered[min(int(fraction * len(answered)), len(answered) - 1)] if answered else None

    return {
        "offered_per_second": sum(map(len, tally.latencies.values())) / seconds,
        "answered_per_second": len(answered) / seconds,
        "p50_ms": percentile(0.5),
        "p95_ms": percentile(0.95),
        "p99_ms": percentile(0.99),
        "statuses": {str(status): len(times) for status, times in sorted(tally.latencies.items())},
        "unanswered": dict(tally.reasons),
    }


def main() -> None:
    """Generate the load of the command line and print the results."""
    port, path, body_file, content_type, seconds, mode, number, source, *headers = sys.argv[1:]
    body = Path(body_file).read_bytes()
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    target = Target(int(port), "\r\n".join(lines).encode() + b"\r\n\r\n" + body, source)
    tally = Tally(begins=time.perf_counter() + WARM_UP_SECONDS)
    ends = tally.begins + float(seconds)
    loop = closed_loop if mode == "closed" else open_loop
    asyncio.run(loop(target, tally, ends, float(number)))
    json.dump(summarise_load(tally, float(seconds)), sys.stdout)


if __name__ == "__main__":
    main()
