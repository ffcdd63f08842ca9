"""The common steps of every gRPC call: request id, token, error status, metrics and log."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc

from resdeploy.runtime.serving.grpc.connections import client_address, end_connection
from resdeploy.runtime.serving.http.connection_table import SHARE, client_network
from resdeploy.runtime.serving.http.token_backoff import TokenBackoff
from resdeploy.runtime.serving.request_errors import QueueFull, RequestError, Unauthorized
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
        self._calls: Counter[str] = Counter()  # by network
        self._share = max(1, int(SHARE * service.config.connections))

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
        network = client_network(record.client)
        late: asyncio.TimerHandle | None = None
        done = False

        def end(_: Any) -> None:
            nonlocal done
            done = True
            if late is not None:
                late.cancel()
            self._calls -= Counter([network])

        self._calls[network] += 1
        context.add_done_callback(end)
        try:
            await context.send_initial_metadata(((REQUEST_ID, record.id),))
            if self._calls[network] > self._share:
                raise QueueFull("too many calls from this address")
            if not public and not self.is_authorized(context):
                if _header(context, "authorization"):
                    await self._backoff.wrong_token(network)
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
            if not done:  # the core holds the call until the client has read all of the answer
                loop, seconds = asyncio.get_running_loop(), self._service.config.body_seconds
                late = loop.call_later(seconds, end_connection, context.peer())
            finish_request(record, self._service, path=record.endpoint)

    @contextmanager
    def sending(self, context: Any) -> Iterator[None]:
        """End the client's connection if it does not take a message of a stream in time."""
        loop, seconds = asyncio.get_running_loop(), self._service.config.body_seconds
        late = loop.call_later(seconds, end_connection, context.peer())
        try:
            yield
        finally:
            late.cancel()


def _header(context: Any, name: str) -> bytes:
    return str(dict(context.invocation_metadata()).get(name, "")).encode()


def _forget_frames(error: BaseException | None) -> None:
    """Release the message of a failed call: gRPC keeps the error in memory."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
