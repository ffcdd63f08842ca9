"""The common steps of every gRPC call: request id, token, error status, metrics and log."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

import grpc

from resdeploy.runtime.serving.http.connection_table import client_network
from resdeploy.runtime.serving.http.token_backoff import TokenBackoff
from resdeploy.runtime.serving.request_errors import RequestError, Unauthorized
from resdeploy.runtime.serving.request_log import (
    RequestRecord,
    check_token,
    choose_request_id,
    finish_request,
)
from resdeploy.runtime.serving.service import Service

logger = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"


class CallGuard:
    """The steps around a gRPC call, as the HTTP middleware does them around a request."""

    def __init__(self, service: Service, token: bytes | None) -> None:
        self._service = service
        self._token = token
        self._backoff = TokenBackoff()

    def is_authorized(self, context: Any) -> bool:
        """Return True if the call has the token, or none is needed."""
        try:
            if self._token is not None:
                check_token(_header(context, "authorization"), self._token)
        except Unauthorized:
            return False
        return True

    @asynccontextmanager
    async def call(
        self, name: str, context: Any, *, public: bool = False
    ) -> AsyncIterator[RequestRecord]:
        """Check and record the call `name` inside the context; convert its errors to a gRPC status.

        A public call needs no token. The call's messages are read inside the context only.
        """
        record = RequestRecord(
            choose_request_id(_header(context, REQUEST_ID)),
            time.monotonic(),
            endpoint=f"grpc/{name}",
            client=client_address(context.peer()),
        )
        await context.send_initial_metadata(((REQUEST_ID, record.id),))
        try:
            if not public and not self.is_authorized(context):
                if _header(context, "authorization"):
                    await self._backoff.wrong_token(client_network(record.client))
                raise Unauthorized("a bearer token is needed")
            yield record
        except RequestError as error:
            record.outcome = error.outcome
            _forget_frames(error)
            await context.abort(grpc.StatusCode[error.grpc], str(error))
        except (asyncio.CancelledError, GeneratorExit):
            record.outcome = "disconnected"
            raise
        except Exception as error:
            logger.exception("a call failed", extra={"fields": {"request_id": record.id}})
            record.outcome = "failed"
            _forget_frames(error)
            await context.abort(grpc.StatusCode.INTERNAL, "the server failed")
        finally:
            finish_request(record, self._service, path=record.endpoint)


def _header(context: Any, name: str) -> bytes:
    return str(dict(context.invocation_metadata()).get(name, "")).encode()


def client_address(peer: str) -> str:
    """Return the address in gRPC's name of a peer, such as `ipv4:10.0.0.7:4711`, without port."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


def _forget_frames(error: BaseException | None) -> None:
    """Release the message of a failed call: gRPC keeps the error in memory."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
