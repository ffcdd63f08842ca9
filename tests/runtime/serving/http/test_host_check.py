"""Host and Origin of requests to an open server."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.runtime.serving.http.host_check import allowed_hosts, check_host
from resdeploy.runtime.serving.request_errors import Forbidden


@pytest.mark.parametrize(
    ("host", "origin", "accepted"),
    [
        ("localhost:8000", None, True),
        ("LOCALHOST.", "http://localhost:8000", True),
        ("127.0.0.1:8000", "http://localhost:3000", True),
        ("[::1]:8000", "http://[::1]:8000", True),
        ("192.0.2.7", None, True),
        ("machine:8000", "http://machine:8000", True),
        ("a.localhost", None, True),
        ("more.example", "https://more.example", True),
        ("evil.example", None, False),
        ("evil.example:8000", "http://evil.example:8000", False),
        ("localhost.evil.example", None, False),
        ("127.0.0.1.evil.example", None, False),
        ("more.example.evil", None, False),
        ("localhost:8000@evil.example", None, False),
        ("localhost, evil.example", None, False),
        ("", None, False),
        ("[::1", None, False),
        ("localhost", "http://evil.example", False),
        ("localhost", "http://192.0.2.7", False),
        ("localhost", "http://localhost.evil.example", False),
        ("localhost", "null", False),
        ("localhost", "", False),
        ("localhost", "file://localhost", False),
    ],
)
def test_foreign_sites_are_refused(host: str, origin: str | None, accepted: bool) -> None:
    headers = {b"host": host.encode()}
    if origin is not None:
        headers[b"origin"] = origin.encode()
    with nullcontext() if accepted else pytest.raises(Forbidden):
        check_host(headers, ["more.example"])


def test_only_open_servers_on_localhost_check_by_default() -> None:
    local, everywhere = ServeConfig(), ServeConfig(host="0.0.0.0", token_file=Path("t"))
    assert allowed_hosts(local, None) == []
    assert allowed_hosts(ServeConfig(host="::1"), None) == []
    assert allowed_hosts(local, b"token") is None
    assert allowed_hosts(everywhere, None) is None
    assert allowed_hosts(ServeConfig(host="0.0.0.0", allow_host=("A.b",)), b"token") == ["a.b"]
