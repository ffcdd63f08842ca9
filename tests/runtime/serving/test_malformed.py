"""A few malformed requests; `benchmarks/serving/malformed.py` sends 10,000."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.serving.malformed import (
    Footprint,
    MalformedRequests,
    RobustnessReport,
    send_malformed,
)
from resdeploy.bundle.bundle import Bundle
from tests.serving_process import ServerProcess

CHECKS = (
    "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "response_headers_conformance", "unsupported_method", "allow_header_conformance",
)  # fmt: skip


def test_malformed_requests_cause_no_fault(tiny_bundle: Bundle) -> None:
    with ServerProcess(tiny_bundle.path, "--threads", 1) as server:
        server.until_ready()
        requests = MalformedRequests(tiny_bundle, "tiny")
        report = send_malformed(server.port, server.process.pid, requests, 450)
        assert report.faults == []
        assert {"200", "400", "404", "405"} <= set(report.statuses)
        assert not [line for line in server.log if line.get("level") == "error"]
        assert server.stop()[0] == 0


def test_faults_are_reported() -> None:
    small, large = (
        Footprint(memory_mb=mb, threads=threads, files=files)
        for mb, threads, files in ((100.0, 5, 10), (300.0, 19, 90))
    )
    statuses = {"500": 2, "503": 7, "no response": 1}
    report = RobustnessReport(statuses=statuses, before=small, after=large, same_response=False)
    assert report.faults == [
        "2 responses with status 500",
        "1 requests without a response",
        "200 MB more memory",
        "80 more open files",
        "14 more threads",
        "a valid request gets another response than before",
    ]


@pytest.mark.slow
def test_the_server_conforms_to_its_openapi_document(server: ServerProcess, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            Path(sys.executable).parent / "schemathesis", "run",
            f"http://127.0.0.1:{server.port}/openapi.json", "--checks", ",".join(CHECKS),
            "--phases", "fuzzing", "-n", "20", "--seed", "1", "--no-color",
        ],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
