"""Deadlines of calls over gRPC."""

from __future__ import annotations

import asyncio
import time

import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.runtime.backends import registry
from resdeploy.runtime.serving.grpc.call_guard import CallGuard
from resdeploy.runtime.serving.grpc.message_reader import MessageReader
from resdeploy.runtime.serving.grpc.messages import load_methods
from resdeploy.runtime.serving.grpc.service import InferenceService
from resdeploy.runtime.serving.request_errors import DeadlineExceeded
from resdeploy.runtime.serving.request_log import RequestRecord
from tests.fakes import make_engine
from tests.runtime.serving.conftest import local_server
from tests.samples import SIZE
from tests.serving_process import PATIENCE

LEFT = 300.0  # seconds, more than any test takes


class SlowCall:
    """A call whose message took long to arrive."""

    def time_remaining(self) -> float:
        return LEFT


def test_the_deadline_of_a_client_does_not_count_the_arrival_of_its_message_twice(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "ENGINES", (make_engine(),))
    method = load_methods()["ModelInfer"]
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, SIZE, SIZE, 3]}
    data = method.request(
        inputs=[tensor], raw_input_contents=[tiny_bundle.golden().images[:1].tobytes()]
    ).SerializeToString()

    async def scenario() -> None:
        async with local_server(tiny_bundle, {"timeout_ms": 4000 * LEFT}) as local:
            guard, reader = CallGuard(local.service, None), MessageReader(local.service.config)
            service = InferenceService(local.service, guard, reader)
            record = RequestRecord("id", time.monotonic() - 2 * LEFT)
            assert (await service._infer(method, data, SlowCall(), record))["outputs"]
            with pytest.raises(DeadlineExceeded):
                record.arrived -= 3 * LEFT
                await service._infer(method, data, SlowCall(), record)

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))
