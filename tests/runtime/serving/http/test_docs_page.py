"""The page of the HTTP interface: complete, and without anything that a browser must fetch."""

from __future__ import annotations

import re

from tests.serving_process import ServerProcess


def test_the_page_describes_every_operation(server: ServerProcess) -> None:
    reply = server.ask("/docs")
    page = reply.body.decode()
    document = server.ask("/openapi.json").json
    for path, item in document["paths"].items():
        for method in set(item) - {"parameters"}:
            assert f"<code>{method.upper()} {path}</code>" in page
            assert item[method]["summary"] in page
    for name in re.findall("#/components/[a-z]+/([A-Za-z]+)", page):
        assert f"<summary>{name}</summary>" in page
    assert "tiny" not in page  # it needs no token
    assert not re.search(r"<script|<link|<img|https?://", page)
    policy = reply.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
