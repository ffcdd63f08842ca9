"""Load on an HTTP server from a process of its own: an asyncio client with plain connections.

    python benchmarks/serving/load.py PORT PATH BODY_FILE CONTENT_TYPE SECONDS MODE NUMBER [HEADER]

Closed: NUMBER clients ask again as soon as they are answered. Open: requests come at random, NUMBER
a second, whatever the server does; their latency counts from when they should have been sent, so
that a server that stalls cannot slow its own examiner down. Prints one JSON document. Only the
standard library: the other servers' environments run it as well.
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
# Requests that are not answered after this long count as unanswered.
PATIENCE_SECONDS = 30.0
# An open loop holds at most so many connections; what finds none in time is unanswered.
MOST_CONNECTIONS = 900
SECONDS_PER_BIN = 1.0


@dataclass
class Tally:
    """What became of the requests after the warm-up."""

    begins: float
    latencies: dict[int, list[float]] = field(default_factory=dict)
    """In milliseconds, by status; 0 for those without an answer."""
    reasons: Counter[str] = field(default_factory=Counter)

    def note(self, sent: float, status: int) -> None:
        if sent >= self.begins:
            elapsed = 1000 * (time.perf_counter() - sent)
            self.latencies.setdefault(status, []).append(elapsed)


@dataclass
class Target:
    """One request, to be sent many times."""

    port: int
    request: bytes
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def ask(self, tally: Tally, sent: float) -> None:
        """Send it once, on a connection that is kept."""
        connection = None
        keep = False
        try:
            connection = self.idle.pop() if self.idle else await self._connect()
            status, keep = await asyncio.wait_for(self._exchange(*connection), PATIENCE_SECONDS)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
            tally.note(sent, 0)
            tally.reasons[type(error).__name__] += 1
        else:
            tally.note(sent, status)
        if connection is not None and keep:
            self.idle.append(connection)
        elif connection is not None:
            connection[1].close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[int, bool]:
        writer.write(self.request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        lines = head.split(b"\r\n")
        headers = dict(line.split(b": ", 1) for line in lines[1:] if b": " in line)
        await reader.readexactly(int(headers.get(b"content-length", 0)))
        return int(lines[0].split()[1]), headers.get(b"connection") != b"close"


async def closed_loop(target: Target, tally: Tally, ends: float, clients: int) -> None:
    """So many clients, each with one request at a time."""

    async def client() -> None:
        while (now := time.perf_counter()) < ends:
            await target.ask(tally, now)

    await asyncio.gather(*(client() for _ in range(clients)))


async def open_loop(target: Target, tally: Tally, ends: float, rate: float) -> None:
    """Requests at random times, `rate` a second on average."""
    generator = random.Random(0)
    room = asyncio.Semaphore(MOST_CONNECTIONS)

    async def one(sent: float) -> None:
        async with room:
            await target.ask(tally, sent)

    asked = set()
    due = time.perf_counter()
    while due < ends:
        due += generator.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.ensure_future(one(due))
        asked.add(task)
        task.add_done_callback(asked.discard)
    await asyncio.gather(*asked)


def summarise(tally: Tally, seconds: float) -> dict[str, object]:
    """Rates and percentiles."""
    answered = sorted(tally.latencies.get(200, ()))

    def percentile(share: float) -> float | None:
        return answered[min(int(share * len(answered)), len(answered) - 1)] if answered else None

    refused = sorted(tally.latencies.get(503, ()))
    return {
        "seconds": seconds,
        "offered_per_second": sum(map(len, tally.latencies.values())) / seconds,
        "answered_per_second": len(answered) / seconds,
        "p50_ms": percentile(0.5),
        "p95_ms": percentile(0.95),
        "p99_ms": percentile(0.99),
        "worst_ms": answered[-1] if answered else None,
        "refused_p99_ms": refused[int(0.99 * len(refused))] if refused else None,
        "statuses": {str(status): len(times) for status, times in sorted(tally.latencies.items())},
        "unanswered": dict(tally.reasons),
    }


def main() -> None:
    """Load, then report."""
    port, path, body_file, content_type, seconds, mode, number, *headers = sys.argv[1:]
    body = Path(body_file).read_bytes()
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    target = Target(int(port), "\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    begins = time.perf_counter() + WARM_UP_SECONDS
    tally = Tally(begins)
    ends = begins + float(seconds)
    if mode == "closed":
        asyncio.run(closed_loop(target, tally, ends, int(number)))
    else:
        asyncio.run(open_loop(target, tally, ends, float(number)))
    json.dump(summarise(tally, float(seconds)), sys.stdout)


if __name__ == "__main__":
    main()
