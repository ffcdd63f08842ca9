"""Tests of the steps around every gRPC call, against a server in this process."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import grpc
import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.runtime.backends import registry
from resdeploy.runtime.serving.grpc.message_reader import MessageReader
from resdeploy.runtime.serving.grpc.service import start_grpc
from tests.fakes import make_engine
from tests.runtime.serving.conftest import local_server
from tests.serving_process import PATIENCE

INFER = "/inference.GRPCInferenceService/ModelInfer"
LIVE = "/inference.GRPCInferenceService/ServerLive"
CHECK = "/grpc.health.v1.Health/Check"


async def code_of(call: Any) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_messages_without_token_are_not_read(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "ENGINES", (make_engine(),))

    async def refuse(reader: MessageReader, context: Any) -> bytes:
        raise AssertionError("a message was read")

    async def scenario() -> None:
        async with local_server(tiny_bundle, {"grpc_port": 0}) as local:
            server, port = await start_grpc(local.service, local.service.config, b"secret")
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                # A client that writes a stream reports INTERNAL where the call ends before its next
                # write; a single message is sent together with the call.
                message = bytes(1 << 12)
                monkeypatch.setattr(MessageReader, "read", refuse)
                codes = {
                    name: await code_of(channel.unary_unary(name)(message))
                    for name in (INFER, LIVE, CHECK)
                }
                assert codes == {
                    INFER: grpc.StatusCode.UNAUTHENTICATED,
                    LIVE: grpc.StatusCode.OK,
                    CHECK: grpc.StatusCode.OK,
                }
                monkeypatch.undo()
                compressed = channel.unary_unary(INFER)(
                    message,
                    metadata=(("authorization", "Bearer secret"),),
                    compression=grpc.Compression.Gzip,
                )
                assert await code_of(compressed) is grpc.StatusCode.UNIMPLEMENTED
            await server.stop(0)

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


def test_connections_above_the_limit_are_closed(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "ENGINES", (make_engine(),))

    def is_open(connection: socket.socket) -> bool:
        try:
            return bool(connection.recv(1))  # the server's settings, or the end
        except ConnectionError:
            return False

    async def scenario() -> None:
        async with local_server(tiny_bundle, {"grpc_port": 0, "connections": 4}) as local:
            server, port = await start_grpc(local.service, local.service.config, None)
            connections = [socket.create_connection(("127.0.0.1", port), 60) for _ in range(12)]
            answers = await asyncio.gather(*(asyncio.to_thread(is_open, c) for c in connections))
            assert sum(answers) == 4
            for connection in connections:
                connection.close()
            await server.stop(0)

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))
