"""The standard services of gRPC: health checking and server reflection.

Sources: https://github.com/grpc/grpc/blob/v1.71.0/doc/health-checking.md and
https://github.com/grpc/grpc/blob/v1.71.0/doc/server-reflection.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from resdeploy.runtime.serving.grpc.call_guard import CallGuard
from resdeploy.runtime.serving.grpc.messages import SERVICE, load_pool
from resdeploy.runtime.serving.request_errors import NotFound
from resdeploy.runtime.serving.service import Service

SERVICES = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
POLL_SECONDS = 0.25

Status = health_pb2.HealthCheckResponse


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The health of the server (""), of the inference service, and of each model by its name."""

    def __init__(self, service: Service, guard: CallGuard) -> None:
        self._service = service
        self._guard = guard

    async def Check(self, request: Any, context: Any) -> Any:  # gRPC's name
        """Return the current status; this call needs no token."""
        async with self._guard.call("Check", context, public=True):
            status = self._status(request.service)
            if status == Status.SERVICE_UNKNOWN:
                raise NotFound("there is no such service or model")
            return Status(status=status)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Yield the current status and each change, until the server stops."""
        async with self._guard.call("Watch", context):
            previous = None
            while True:
                draining = self._service.readiness.draining
                status = self._status(request.service)
                if status != previous:
                    yield Status(status=status)
                if draining:
                    return
                previous = status
                await asyncio.sleep(POLL_SECONDS)

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

    def __init__(self, guard: CallGuard) -> None:
        """Add the messages of the standard services to those of the inference service."""
        pool = load_pool()
        for file in (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
            pool.AddSerializedFile(file.serialized_pb)
        super().__init__(SERVICES, pool)
        self._guard = guard

    async def ServerReflectionInfo(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, requests: Any, context: Any
    ) -> AsyncIterator[Any]:
        responses: Any = super().ServerReflectionInfo(requests, context)
        async with self._guard.call("ServerReflectionInfo", context):
            async for response in responses:
                yield response
