"""Requests to an ASGI application without a server or a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message


@dataclass
class Reply:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def ask(
    app: ASGIApp,
    path: str,
    body: bytes | Sequence[bytes] | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    method: str | None = None,
    disconnect: asyncio.Event | None = None,
    stalls: bool = False,
) -> Reply:
    """Send one request.

    Args:
        app: ASGI application.
        path: Path and query.
        body: Body, or its chunks.
        headers: Headers.
        method: Method; GET without a body and POST with one by default.
        disconnect: Event at which the client disconnects.
        stalls: True if the last chunk is never sent.
    """
    chunks = [body or b""] if body is None or isinstance(body, bytes) else list(body)
    path, _, query = path.partition("?")
    reply = Reply()

    async def receive() -> Message:
        if chunks and not (stalls and len(chunks) == 1):
            chunk = chunks.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}
        await (disconnect or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            reply.status = message["status"]
            reply.headers = {
                name.decode().lower(): value.decode() for name, value in message["headers"]
            }
        else:
            reply.body += message.get("body", b"")

    scope = {
        "type": "http",
        "method": method or ("GET" if body is None else "POST"),
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [
            (name.lower().encode(), value.encode("latin-1"))
            for name, value in (headers or {}).items()
        ],
    }
    await app(scope, receive, send)
    return reply
