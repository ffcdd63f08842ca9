"""The first requests that a server prints: they work as they stand."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.runtime.serving.http.first_request import first_requests
from tests.serving_process import ServerProcess, picture


def test_the_commands_work(server: ServerProcess, image_data: Path, tmp_path: Path) -> None:
    _, *commands = first_requests(ServeConfig(), server.port, needs_token=False).splitlines()
    (tmp_path / "PICTURE").write_bytes(picture(image_data))
    for command, expected in zip(commands, ('"tiny"', '"label":'), strict=True):
        done = subprocess.run(
            ["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert expected in done.stdout


@pytest.mark.parametrize(
    ("settings", "needs_token", "expected"),
    [
        ({"host": "0.0.0.0"}, False, "curl http://localhost:80/v2/models"),
        ({"host": "::1"}, False, "curl 'http://[::1]:80/v2/models'"),
        ({"tls_cert": Path("a b.pem")}, False, "curl --cacert 'a b.pem' https://127.0.0.1:80/"),
        ({}, True, 'curl -H "Authorization: Bearer $RESDEPLOY_TOKEN" http'),
        ({"token_file": Path("t")}, True, 'curl -H "Authorization: Bearer $(cat t)" http'),
    ],
)
def test_the_commands_suit_the_settings(
    settings: dict[str, Any], needs_token: bool, expected: str
) -> None:
    assert expected in first_requests(ServeConfig(**settings), 80, needs_token=needs_token)
