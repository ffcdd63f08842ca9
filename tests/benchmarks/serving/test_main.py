"""Tests of the serving benchmark: load generators, tables and output file."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import serving
from benchmarks.serving.__main__ import (
    compared_servers,
    load_text,
    median_round,
    rows_text,
    saturation_text,
    write_part,
)
from benchmarks.serving.load import Tally, Target, closed_loop, open_loop, summarise_load
from benchmarks.serving.payloads import picture_request
from benchmarks.serving.servers import LoadResult
from resdeploy.runtime.serving.http.uploads import read_uploads

ROOT = Path(serving.__file__).parent


def row(rate: float) -> LoadResult:
    return LoadResult(
        contender="a", load="closed 1", offered_per_second=rate, answered_per_second=rate,
        p50_ms=1.0, p95_ms=2.0, p99_ms=None, statuses={"200": 5, "503": 2}, unanswered={},
    )  # fmt: skip


def test_the_median_round_is_selected() -> None:
    assert median_round([row(3), row(1), row(2)]).answered_per_second == 2


def test_tables_show_rejected_requests() -> None:
    assert rows_text([row(3)]).splitlines()[2].split()[-2:] == ["2", "0"]


def test_the_text_compares_with_the_bare_backend() -> None:
    rates = {
        "bare 1 x 2": [100.0, 110.0, 120.0], "bare 2 x 1": [90.0, 95.0, 99.0],
        "resdeploy": [95.0, 99.0, 110.0],
    }  # fmt: skip
    text = saturation_text({"images_per_second": rates, "share": 0.93})
    assert text == (
        "99.0 images/s, 93 % of the faster bare backend (bare 1 x 2: 110.0, bare 2 x 1: 95.0)"
    )


def test_server_names_describe_their_variant() -> None:
    names = [server.name for server in compared_servers(2, plain=True)]
    assert names == [
        "resdeploy", "resdeploy 1 instance", "litserve 1 worker", "litserve 2 workers", "fastapi",
        "litserve 1 worker, plain decoding", "litserve 2 workers, plain decoding",
        "fastapi, plain decoding",
    ]  # fmt: skip


def test_parts_are_kept_in_the_output(tmp_path: Path) -> None:
    output = tmp_path / "serving.json"
    write_part(output, "tensors", {"share": 0.8})
    write_part(output, "load", {"capacity": 9.0})
    write_part(output, "tensors", {"share": 0.9})
    document = json.loads(output.read_bytes())
    assert (document["tensors"], document["load"]) == ({"share": 0.9}, {"capacity": 9.0})
    assert document["machine"]["cores"] >= 1


def test_the_text_describes_overload_and_stop() -> None:
    results = {
        "capacity": 90.0,
        "open": [row(3)],
        "overload": {
            "row": replace(row(3), p99_ms=50.0), "p99_ratio": 1.25, "memory_mb_before": 100.0,
            "memory_mb_after": 101.0, "healthy_after_1_s": True,
        },
        "stopped": {"statuses": {"200": 40}, "lost": 0, "exit_code": 0},
    }  # fmt: skip
    text = load_text(results)
    assert "p99 50 ms, 1.25 times that at capacity; memory 100 to 101 MB" in text
    assert text.endswith("stopped under load: statuses {'200': 40}, 0 lost, exit code 0")


def test_an_upload_has_the_format_of_curl(tmp_path: Path) -> None:
    request = picture_request(tmp_path, (50, 37))
    (upload,) = read_uploads(request.content_type, request.file.read_bytes(), 1)
    with Image.open(io.BytesIO(upload.data)) as image:
        assert (image.format, image.size) == ("JPEG", (50, 37))


def test_percentiles_cover_only_successful_requests() -> None:
    tally = Tally(0.0)
    tally.latencies = {200: [float(number) for number in range(1, 101)], 503: [0.5], 0: [9999.0]}
    summary = summarise_load(tally, 10.0)
    assert (summary["p50_ms"], summary["p99_ms"]) == (51.0, 100.0)
    assert summary["offered_per_second"] == 10.2
    assert summary["statuses"] == {"0": 1, "200": 100, "503": 1}


async def load(kind: str) -> Tally:
    """Load a server that rejects every third request and drops every seventh."""
    requests = connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests, connections
        connections += 1
        try:
            while await reader.readexactly(len(request)):
                requests += 1
                if requests % 7 == 0:
                    break
                await asyncio.sleep(0.002)
                status = b"503 Busy" if requests % 3 == 0 else b"200 OK"
                writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\nok")
        except asyncio.IncompleteReadError:
            pass
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        connections -= 1

    request = b"POST / HTTP/1.1\r\n\r\n"
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    target = Target(server.sockets[0].getsockname()[1], request, "127.0.0.1")
    tally = Tally(time.perf_counter())
    while requests < 21:  # a busy machine may need several attempts
        ends = time.perf_counter() + 0.4
        if kind == "closed":
            await closed_loop(target, tally, ends, 4)
        else:
            await open_loop(target, tally, ends, 300.0)
    for _, writer in target.idle:
        writer.close()
    server.close()
    await server.wait_closed()
    while connections:
        await asyncio.sleep(0.01)
    assert sum(map(len, tally.latencies.values())) == requests
    return tally


@pytest.mark.parametrize("kind", ["closed", "open"])
def test_a_load_counts_answers_rejections_and_failures(kind: str) -> None:
    tally = asyncio.run(load(kind))
    assert set(tally.latencies) == {0, 200, 503}
    assert min(tally.latencies[200]) >= 2
    assert tally.reasons["IncompleteReadError"] == len(tally.latencies[0])


def test_the_load_generator_needs_only_the_standard_library() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import load; "
        "assert not {'numpy', 'click', 'resdeploy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-S", "-c", code], check=True)
    assert json.dumps(summarise_load(Tally(0.0), 1.0))
