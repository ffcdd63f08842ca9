"""ASGI middleware that adds request id, token check, error responses, metrics and access log.

Source: https://asgi.readthedocs.io/en/latest/specs/www.html.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import msgspec
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
    choose_request_id,
    finish_request,
)
from resdeploy.runtime.serving.schemas import Error

logger = logging.getLogger(__name__)

# Health probes and the static web page need no token.
PUBLIC_PATHS = frozenset({"/", "/healthz", "/v2/health/live", "/v2/health/ready"})
COMMON_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
)


class RequestMiddleware:
    """Middleware around the application that handles the requests."""

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
        """Wrap `app`.

        Args:
            app: Application that raises `RequestError` for requests that fail.
            metrics: Metrics that count every request.
            token: Bearer token of authorised clients; None if no token is needed.
            access_log: True to log every request for a model, False to log only failed requests.
            over_capacity: Function that returns True if there are too many connections.
            closing: Function that returns True if connections must close after a response.
        """
        self._app = app
        self._metrics = metrics
        self._token = token
        self._access_log = access_log
        self._over_capacity = over_capacity
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        request_id = choose_request_id(headers.get(b"x-request-id"))
        record = RequestRecord(request_id, time.monotonic())
        scope["record"] = record

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = self._headers(message, record)
            await send(message)

        try:
            if scope["path"] not in PUBLIC_PATHS:
                if self._token is not None:
                    check_token(headers.get(b"authorization"), self._token)
                if self._over_capacity():
                    raise QueueFull("too many connections")
            await self._app(scope, receive, send_with_headers)
        except Disconnected:
            record.outcome = "disconnected"
        except RequestError as error:
            await self._send_request_error(error, record, send_with_headers)
        except HTTPException as error:  # from Starlette's router: unknown path or method
            record.outcome = RequestError.outcome
            extra = [(k.encode(), v.encode()) for k, v in (error.headers or {}).items()]
            await send_error(send_with_headers, error.status_code, error.detail.lower(), extra)
        except Exception:
            logger.exception("a request failed", extra={"fields": {"request_id": record.id}})
            record.outcome = "failed"
            if not record.status:
                await send_error(send_with_headers, 500, "the server failed")
        finally:
            finish_request(
                record,
                self._metrics,
                access_log=self._access_log,
                method=scope["method"],
                path=scope["path"][:200],
                status=record.status,
            )

    async def _send_request_error(
        self, error: RequestError, record: RequestRecord, send: Send
    ) -> None:
        record.outcome = error.outcome
        headers: list[tuple[bytes, bytes]] = []
        if isinstance(error, Unavailable):
            headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after))).encode()))
        if isinstance(error, Unauthorized):
            headers.append((b"www-authenticate", b"Bearer"))
        await send_error(send, error.status, str(error), headers)

    def _headers(self, message: Message, record: RequestRecord) -> list[tuple[bytes, bytes]]:
        headers = [
            *message.get("headers", ()),
            (b"x-request-id", record.id.encode()),
            *COMMON_HEADERS,
        ]
        if self._closing() or self._over_capacity():
            headers.append((b"connection", b"close"))
        return headers


async def send_error(
    send: Send, status: int, message: str, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    """Send a response with the protocol's error document."""
    body = msgspec.json.encode(Error(error=message))
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
