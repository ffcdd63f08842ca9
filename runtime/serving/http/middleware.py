"""What happens to every HTTP request: an id, the token, one line in the log, no surprises.

An ASGI application around another one; https://asgi.readthedocs.io/en/latest/specs/www.html.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resdeploy.runtime.serving.http.body import Disconnected
from resdeploy.runtime.serving.metrics import Metrics
from resdeploy.runtime.serving.request_errors import (
    QueueFull,
    RequestError,
    Unauthorized,
    Unavailable,
)
from resdeploy.runtime.serving.request_log import (
    RequestRecord,
    check_token,
    finish_request,
    request_id,
)

logger = logging.getLogger(__name__)

# What probes and browsers must see without a token; nothing of it is a secret.
OPEN_PATHS = frozenset({"/", "/healthz", "/v2/health/live", "/v2/health/ready"})
ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
)


class RequestMiddleware:
    """Around the application that handles requests."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        *,
        token: bytes | None,
        access_log: bool,
        over_capacity: Callable[[], bool],
        closing: Callable[[], bool],
    ) -> None:
        """Let requests through to `app`.

        Args:
            app: Raises `RequestError` where it refuses.
            metrics: Told of every request.
            token: What clients must know; None: nothing.
            access_log: Log every request, not only those that went wrong.
            over_capacity: Whether there are too many connections to serve more than probes.
            closing: Whether connections should end with their next answer.
        """
        self._app = app
        self._metrics = metrics
        self._token = token
        self._access_log = access_log
        self._crowded = over_capacity
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        record = RequestRecord(request_id(headers.get(b"x-request-id")), time.monotonic())
        scope["record"] = record

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = self._headers(message, record)
            await send(message)

        try:
            if scope["path"] not in OPEN_PATHS:
                if self._token is not None:
                    check_token(headers.get(b"authorization"), self._token)
                if self._crowded():
                    raise QueueFull("too many connections")
            await self._app(scope, receive, send_on)
        except Disconnected:
            record.outcome = "disconnected"
        except RequestError as refusal:
            await self._refuse(refusal, record, send_on)
        except HTTPException as error:  # Starlette's: no such path, no such method
            record.outcome = RequestError.outcome
            extra = [(k.encode(), v.encode()) for k, v in (error.headers or {}).items()]
            await send_error(send_on, error.status_code, error.detail.lower(), extra)
        except Exception:
            logger.exception("a request failed", extra={"fields": {"request_id": record.id}})
            record.outcome = "failed"
            if not record.status:
                await send_error(send_on, 500, "the server failed")
        finally:
            finish_request(
                record,
                self._metrics,
                access_log=self._access_log,
                method=scope["method"],
                path=scope["path"][:200],
                status=record.status,
            )

    async def _refuse(self, refusal: RequestError, record: RequestRecord, send: Send) -> None:
        record.outcome = refusal.outcome
        headers: list[tuple[bytes, bytes]] = []
        if isinstance(refusal, Unavailable):
            headers.append((b"retry-after", str(max(1, math.ceil(refusal.retry_after))).encode()))
        if isinstance(refusal, Unauthorized):
            headers.append((b"www-authenticate", b"Bearer"))
        await send_error(send, refusal.status, str(refusal), headers)

    def _headers(self, message: Message, record: RequestRecord) -> list[tuple[bytes, bytes]]:
        headers = [*message.get("headers", ()), (b"x-request-id", record.id.encode()), *ALWAYS]
        if self._closing() or self._crowded():
            headers.append((b"connection", b"close"))
        return headers


async def send_error(
    send: Send, status: int, message: str, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    """The protocol's error document."""
    body = json.dumps({"error": message}).encode()
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                *(headers or ()),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
