"""Health checking and reflection over gRPC, with the clients of grpcio's own packages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha import reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from resdeploy.bundle.bundle import Bundle
from resdeploy.runtime.backends import registry
from resdeploy.runtime.serving.grpc.service import start_grpc
from tests.fakes import make_engine
from tests.runtime.serving.conftest import LocalServer, local_server
from tests.serving_process import PATIENCE, ServerProcess

# The generated stubs set their methods when they are created, which type checkers cannot see.
HealthStub: Any = health_pb2_grpc.HealthStub
ServerReflectionStub: Any = reflection_pb2_grpc.ServerReflectionStub
EOF: Any = grpc.aio.EOF  # pyright: ignore[reportAttributeAccessIssue]
INFERENCE = "inference.GRPCInferenceService"
SERVICES = ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", INFERENCE]
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel


@pytest.mark.parametrize("name", ["", "tiny", INFERENCE])
def test_a_ready_server_is_serving(channel: Any, name: str) -> None:
    assert HealthStub(channel).Check(HealthCheckRequest(service=name)).status == SERVING


def test_the_health_of_an_unknown_service_is_an_error(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        HealthStub(channel).Check(HealthCheckRequest(service="cat"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_describes_all_services(channel: Any) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert sorted(database.get_services()) == SERVICES
    pool = DescriptorPool(database)
    for name in SERVICES:
        assert pool.FindServiceByName(name).methods
    infer = pool.FindServiceByName(INFERENCE).FindMethodByName("ModelInfer")
    assert "raw_input_contents" in infer.input_type.fields_by_name


@asynccontextmanager
async def grpc_server(
    bundle: Bundle, token: bytes | None = None
) -> AsyncIterator[tuple[LocalServer, Any]]:
    """Serve `bundle` over gRPC in this process; yield the server and a channel to it."""
    async with local_server(bundle, {"grpc_port": 0}) as local:
        server, port = await start_grpc(local.service, local.service.config, token)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield local, channel
            await server.stop(0)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, PATIENCE))


@pytest.fixture(autouse=True)
def _fake_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "ENGINES", (make_engine(),))


@pytest.mark.parametrize("name", ["", "tiny", INFERENCE])
def test_a_draining_server_is_not_serving(tiny_bundle: Bundle, name: str) -> None:
    async def scenario() -> None:
        async with grpc_server(tiny_bundle) as (local, channel):
            watch = HealthStub(channel).Watch(HealthCheckRequest(service=name))
            assert (await watch.read()).status == SERVING
            local.service.readiness.draining = True
            answer = await HealthStub(channel).Check(HealthCheckRequest(service=name))
            assert answer.status == NOT_SERVING
            assert (await watch.read()).status == NOT_SERVING
            assert await watch.read() == EOF  # so that it does not delay the shutdown

    run(scenario())


def test_a_model_without_an_engine_is_not_serving(tiny_bundle: Bundle) -> None:
    async def scenario() -> None:
        async with grpc_server(tiny_bundle) as (local, channel):
            current, local.model._current = local.model._current, None
            for name in ("", "tiny", INFERENCE):
                answer = await HealthStub(channel).Check(HealthCheckRequest(service=name))
                assert answer.status == NOT_SERVING
            local.model._current = current

    run(scenario())


def test_watching_an_unknown_service_reports_it(tiny_bundle: Bundle) -> None:
    async def scenario() -> None:
        async with grpc_server(tiny_bundle) as (_, channel):
            watch = HealthStub(channel).Watch(HealthCheckRequest(service="cat"))
            assert (await watch.read()).status == HealthCheckResponse.SERVICE_UNKNOWN

    run(scenario())


def test_only_the_health_check_needs_no_token(tiny_bundle: Bundle) -> None:
    async def scenario() -> None:
        async with grpc_server(tiny_bundle, token=b"secret") as (local, channel):
            assert (await HealthStub(channel).Check(HealthCheckRequest())).status == SERVING
            token = (("authorization", "Bearer secret"),)
            question = ServerReflectionRequest(list_services="")
            reflect = ServerReflectionStub(channel).ServerReflectionInfo
            for call in (
                reflect(iter([question])),
                HealthStub(channel).Watch(HealthCheckRequest()),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call.read()
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            answer = await reflect(iter([question]), metadata=token).read()
            assert len(answer.list_services_response.service) == len(SERVICES)
            watch = HealthStub(channel).Watch(HealthCheckRequest(), metadata=token)
            assert (await watch.read()).status == SERVING
            assert 'endpoint="grpc/Watch",model="",outcome="unauthorized"' in local.metrics()

    run(scenario())
