"""ASGI middleware that adds request id, token check, error responses, metrics and access log.

Source: https://asgi.readthedocs.io/en/latest/specs/www.html.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resdeploy.runtime.serving.http.body import Disconnected
from resdeploy.runtime.serving.http.connection_table import client_network
from resdeploy.runtime.serving.http.host_check import allowed_hosts, check_host
from resdeploy.runtime.serving.http.responses import json_response
from resdeploy.runtime.serving.http.token_backoff import TokenBackoff
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
from resdeploy.runtime.serving.service import Service

logger = logging.getLogger(__name__)

# These need no token. Probes may use any Host; `/docs` names models, unless there is a token.
PROBES = frozenset({"/healthz", "/v2/health/live", "/v2/health/ready"})
PUBLIC_PATHS = PROBES | {"/", "/docs"}
UNKNOWN_PATH = "there is no such path; /docs describes those that exist"
COMMON_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))


class RequestMiddleware:
    """Middleware around the application that handles the requests."""

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        token: bytes | None,
        over_capacity: Callable[[], bool],
    ) -> None:
        """Wrap `app`.

        Args:
            app: Application that raises `RequestError` for requests that fail.
            service: Service of the application, with its metrics and settings.
            token: Bearer token of authorised clients; None if no token is needed.
            over_capacity: Function that returns True if there are too many connections.
        """
        self._app = app
        self._service = service
        self._token = token
        self._over_capacity = over_capacity
        self._allowed_hosts = allowed_hosts(service.config, token)
        self._backoff = TokenBackoff()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        record = RequestRecord(choose_request_id(headers.get(b"x-request-id")), time.monotonic())
        record.client = (scope.get("client") or ("",))[0]
        scope["record"] = record

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = self._headers(message, record)
            await send(message)

        try:
            if scope["path"] not in PROBES and self._allowed_hosts is not None:
                check_host(headers, self._allowed_hosts)
            if scope["path"] not in PUBLIC_PATHS:
                if not (scope["path"] == "/metrics" and self._service.config.open_metrics):
                    await self._check_token(headers.get(b"authorization"), record.client)
                if self._over_capacity():
                    raise QueueFull("too many connections")
            await self._app(scope, receive, send_with_headers)
        except Disconnected:
            record.outcome = "disconnected"
        except RequestError as error:
            record.outcome = error.outcome
            response = json_response(Error(str(error)), error.status, _extra_headers(error))
            await response(scope, receive, send_with_headers)
        except HTTPException as error:  # from Starlette's router: unknown path or method
            record.outcome = RequestError.outcome
            allowed = (error.headers or {}).get("Allow")
            reason = UNKNOWN_PATH if error.status_code == 404 else error.detail.lower()
            reason += f"; this path allows {allowed}" if allowed else ""
            response = json_response(Error(reason), error.status_code, error.headers)
            await response(scope, receive, send_with_headers)
        except Exception:
            logger.exception("a request failed", extra={"fields": {"request_id": record.id}})
            record.outcome = "failed"
            if not record.status:
                response = json_response(Error("the server failed"), 500)
                await response(scope, receive, send_with_headers)
        finally:
            finish_request(
                record,
                self._service,
                method=scope["method"],
                path=scope["path"][:200],
                status=record.status,
            )

    async def _check_token(self, header: bytes | None, client: str) -> None:
        if self._token is None:
            return
        try:
            check_token(header, self._token)
        except Unauthorized:
            if header is not None:
                await self._backoff.wrong_token(client_network(client))
            raise

    def _headers(self, message: Message, record: RequestRecord) -> list[tuple[bytes, bytes]]:
        request_id = (b"x-request-id", record.id.encode())
        headers = [*message.get("headers", ()), request_id, *COMMON_HEADERS]
        if self._service.readiness.draining or self._over_capacity():
            headers.append((b"connection", b"close"))
        return headers


def _extra_headers(error: RequestError) -> dict[str, str]:
    if isinstance(error, Unavailable):
        return {"retry-after": str(max(1, math.ceil(error.retry_after)))}
    return {"www-authenticate": "Bearer"} if isinstance(error, Unauthorized) else {}
