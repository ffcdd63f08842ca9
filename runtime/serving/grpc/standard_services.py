"""The standard services of gRPC: health checking and server reflection.

Sources: https://github.com/grpc/grpc/blob/v1.71.0/doc/health-checking.md and
https://github.com/grpc/grpc/blob/v1.71.0/doc/server-reflection.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from resdeploy.runtime.serving.grpc.call_guard import CallGuard
from resdeploy.runtime.serving.grpc.message_reader import MessageReader, parse_small
from resdeploy.runtime.serving.grpc.messages import SERVICE, load_pool
from resdeploy.runtime.serving.request_errors import NotFound
from resdeploy.runtime.serving.service import Service

SERVICES = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
POLL_SECONDS = 0.25  # a poll takes about 20 us, and a port has at most 1024 calls

Status = health_pb2.HealthCheckResponse


class HealthService:
    """The health of the server (""), of the inference service, and of each model by its name."""

    def __init__(self, service: Service, guard: CallGuard, reader: MessageReader) -> None:
        self._service = service
        self._guard = guard
        self._reader = reader
        respond = Status.SerializeToString
        self.handler = grpc.method_handlers_generic_handler(
            health.SERVICE_NAME,
            {  # streams, as in `InferenceService`
                "Check": grpc.stream_unary_rpc_method_handler(self._check, None, respond),
                "Watch": grpc.stream_stream_rpc_method_handler(self._watch, None, respond),
            },
        )

    async def _check(self, messages: Any, context: Any) -> Any:
        """Return the current status; without the token that of the server, whatever is asked."""
        async with self._guard.call("Check", context, public=True):
            name = await self._read_name(context) if self._guard.is_authorized(context) else ""
            status = self._status(name)
            if status == Status.SERVICE_UNKNOWN:
                names = ", ".join(SERVICES[:1] + tuple(self._service.models))
                raise NotFound(f"there is no such service or model; this server has {names}")
            return Status(status=status)

    async def _watch(self, messages: Any, context: Any) -> AsyncIterator[Any]:
        """Yield the current status and each change, until the server stops."""
        async with self._guard.call("Watch", context):
            name, previous = await self._read_name(context), None
            while True:
                draining = self._service.readiness.draining
                status = self._status(name)
                if status != previous:
                    with self._guard.sending(context):
                        yield Status(status=status)
                if draining:
                    return
                previous = status
                await asyncio.sleep(POLL_SECONDS)

    async def _read_name(self, context: Any) -> str:
        data = await self._reader.read_only(context)
        return str(parse_small(health_pb2.HealthCheckRequest, data).service)

    def _status(self, name: str) -> int:
        if name in ("", SERVICE):
            ready = self._service.readiness.is_server_ready()
        elif name in self._service.models:
            ready = self._service.readiness.is_model_ready(self._service.models[name])
        else:
            return int(Status.SERVICE_UNKNOWN)
        return int(Status.SERVING if ready else Status.NOT_SERVING)


class ReflectionService(reflection.aio.ReflectionServicer):  # type: ignore[misc]
    """The descriptions of all services, for clients such as grpcurl."""

    def __init__(self, guard: CallGuard, reader: MessageReader) -> None:
        """Add the messages of the standard services to those of the inference service."""
        pool = load_pool()
        for file in (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
            pool.AddSerializedFile(file.serialized_pb)
        super().__init__(SERVICES, pool)
        self._guard = guard
        self._reader = reader
        respond = reflection_pb2.ServerReflectionResponse.SerializeToString
        describe = grpc.stream_stream_rpc_method_handler(self._describe, None, respond)
        self.handler = grpc.method_handlers_generic_handler(
            reflection.SERVICE_NAME, {"ServerReflectionInfo": describe}
        )

    async def _describe(self, messages: Any, context: Any) -> AsyncIterator[Any]:
        async with self._guard.call("ServerReflectionInfo", context):
            responses: Any = self.ServerReflectionInfo(self._questions(context), context)
            async for response in responses:
                with self._guard.sending(context):
                    yield response

    async def _questions(self, context: Any) -> AsyncIterator[Any]:
        while (data := await self._reader.read(context)) is not None:
            yield parse_small(reflection_pb2.ServerReflectionRequest, data)
