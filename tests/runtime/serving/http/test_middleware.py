"""Overload, tokens and disconnecting clients, with engines that the tests block."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.runtime.backends import registry
from resdeploy.runtime.serving.http import routes
from resdeploy.runtime.serving.http.body import ByteBudget, parse_integer
from resdeploy.runtime.serving.http.uploads import FORM
from resdeploy.runtime.serving.request_errors import QueueFull, RequestError, Unauthorized
from resdeploy.runtime.serving.request_log import check_token, choose_request_id
from tests.fakes import GoldenBackend, make_engine
from tests.runtime.serving.conftest import LocalServer, local_server, until, without_models
from tests.serving_process import PATIENCE, picture, tensor_request

INFER = "/v2/models/tiny/infer"


def run(work: Coroutine[Any, Any, Any]) -> None:
    asyncio.run(asyncio.wait_for(work, PATIENCE))


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> list[GoldenBackend]:
    """The backends that the only engine has opened."""
    opened: list[GoldenBackend] = []
    monkeypatch.setattr(registry, "ENGINES", (make_engine(opened=opened.append),))
    return opened


def golden(local: LocalServer, count: int = 1) -> tuple[bytes, dict[str, str]]:
    images = local.model.loaded_bundle().bundle.golden().images
    return tensor_request(np.resize(images, (count, *images.shape[1:])))


class DisconnectEvent(asyncio.Event):
    awaited = False

    async def wait(self) -> Literal[True]:
        self.awaited = True
        return await super().wait()


def counted(local: LocalServer, outcome: str) -> bool:
    return f'outcome="{outcome}"' in local.metrics()


def test_a_full_queue_is_503_with_retry_after(
    tiny_bundle: Bundle, backends: list[GoldenBackend]
) -> None:
    async def scenario() -> None:
        async with local_server(tiny_bundle, {"queue": 4}) as local:
            backends[0].hold.clear()
            body, headers = golden(local)
            tasks = [asyncio.ensure_future(local.ask(INFER, body, headers)) for _ in range(20)]
            await until(lambda: sum(task.done() for task in tasks) >= 15)
            backends[0].hold.set()
            replies = await asyncio.gather(*tasks)
            assert sorted(reply.status for reply in replies) == [200] * 5 + [503] * 15
            rejected = [reply for reply in replies if reply.status == 503]
            assert all(int(reply.headers["retry-after"]) >= 1 for reply in rejected)
            assert rejected[0].json == {"error": "the queue is full"}
            assert counted(local, "overloaded")
            assert (await local.ask(INFER, body, headers)).status == 200

    run(scenario())


def test_an_overloaded_server_does_not_read_the_body(
    tiny_bundle: Bundle, backends: list[GoldenBackend]
) -> None:
    async def scenario() -> None:
        async with local_server(tiny_bundle, {"queue": 1}) as local:
            backends[0].hold.clear()
            body, headers = golden(local)
            tasks = [asyncio.ensure_future(local.ask(INFER, body, headers)) for _ in range(2)]
            await until(lambda: local.model.depth == 1)
            # The last chunk never arrives, so reading the body would block.
            for path in (INFER, "/v1/classify"):
                assert (await local.ask(path, [b"x", b"y"], stalls=True)).status == 503
            backends[0].hold.set()
            await asyncio.gather(*tasks)

    run(scenario())


@pytest.mark.parametrize("how", ["header", "parameter", "default"])
def test_a_deadline_that_passes_is_503(
    tiny_bundle: Bundle, backends: list[GoldenBackend], how: str
) -> None:
    async def scenario() -> None:
        settings = {"timeout_ms": 50} if how == "default" else {}
        async with local_server(tiny_bundle, settings) as local:
            backends[0].hold.clear()
            body, headers = golden(local)
            first = asyncio.ensure_future(
                local.ask(INFER, body, {**headers, "X-Timeout-Ms": "60000"})
            )
            await until(lambda: backends[0].held)
            if how == "header":
                headers = {**headers, "X-Timeout-Ms": "50"}
            elif how == "parameter":
                images = local.model.loaded_bundle().bundle.golden().images[:1]
                body, headers = tensor_request(images, timeout=50_000)
            reply = await local.ask(INFER, body, headers)
            assert reply.status == 503
            assert "deadline" in reply.json["error"]
            assert counted(local, "deadline_exceeded")
            backends[0].hold.set()
            # A client cannot extend its deadline beyond that of the server.
            assert (await first).status == (503 if how == "default" else 200)

    run(scenario())


def test_a_disconnect_removes_the_request_from_the_queue(
    tiny_bundle: Bundle, backends: list[GoldenBackend]
) -> None:
    async def scenario() -> None:
        async with local_server(tiny_bundle) as local:
            backends[0].hold.clear()
            body, headers = golden(local)
            first = asyncio.ensure_future(local.ask(INFER, body, headers))
            await until(lambda: backends[0].held)
            disconnect = asyncio.Event()
            second = asyncio.ensure_future(local.ask(INFER, body, headers, disconnect=disconnect))
            await until(lambda: local.model.depth == 1)
            disconnect.set()
            assert (await second).status == 0  # no response was sent
            await until(lambda: local.model.depth == 0)
            backends[0].hold.set()
            assert (await first).status == 200
            assert counted(local, "disconnected")

    run(scenario())


def test_a_client_may_disconnect_during_its_body(
    tiny_bundle: Bundle, backends: list[GoldenBackend]
) -> None:
    async def scenario() -> None:
        async with local_server(tiny_bundle) as local:
            disconnect = asyncio.Event()
            disconnect.set()
            reply = await local.ask(INFER, [b"a", b"b"], stalls=True, disconnect=disconnect)
            assert reply.status == 0
            assert counted(local, "disconnected")

    run(scenario())


def test_a_body_that_does_not_arrive_is_408(
    tiny_bundle: Bundle, backends: list[GoldenBackend]
) -> None:
    async def scenario() -> None:
        async with local_server(tiny_bundle, {"body_seconds": 0.05}) as local:
            reply = await local.ask(INFER, [b"a", b"b"], stalls=True)
            assert reply.status == 408
            assert counted(local, "body_timeout")

    run(scenario())


def test_a_body_that_grows_over_the_limit_is_413(
    tiny_bundle: Bundle, backends: list[GoldenBackend]
) -> None:
    async def scenario() -> None:
        async with local_server(tiny_bundle, {"max_body_mib": 1}) as local:
            reply = await local.ask(INFER, [bytes(1 << 19)] * 3)
            assert reply.status == 413
            assert local.service.metrics.requests == 1

    run(scenario())


def test_a_body_that_arrives_slowly_makes_room_for_others(
    tiny_bundle: Bundle, backends: list[GoldenBackend]
) -> None:
    async def scenario() -> None:
        async with local_server(tiny_bundle, {"bodies_mib": 1}) as local:
            large = [bytes(900 << 10), b"last"]
            disconnect = DisconnectEvent()
            slow = asyncio.ensure_future(
                local.ask(INFER, large, stalls=True, disconnect=disconnect)
            )
            await until(lambda: disconnect.awaited)  # the first chunk is read
            assert (await local.ask(INFER, large)).status == 400  # it was read and parsed
            assert (await slow).status == 503
            assert "slowly" in (await slow).json["error"]
            assert (await local.ask(INFER, [bytes(1 << 20), b"x"])).status == 503
            assert (await local.ask(INFER, large)).status == 400  # there is room again

    run(scenario())


@pytest.mark.parametrize("count", [1, 2])
def test_large_answers_are_converted_in_a_thread(
    tiny_bundle: Bundle,
    backends: list[GoldenBackend],
    image_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
) -> None:
    threads: list[str] = []

    def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            threads.append(threading.current_thread().name)
            return function(*arguments)

        return call

    for name in ("encode_output", "top_predictions", "json_response"):
        monkeypatch.setattr(routes, name, recorded(getattr(routes, name)))
    monkeypatch.setattr(routes, "MAX_INLINE_BYTES", 20 * 3 + 100 * 3 if count == 1 else 20 * 3)

    async def scenario() -> None:
        async with local_server(tiny_bundle, decodes=True) as local:
            body, headers = golden(local, count)
            assert (await local.ask(INFER, body, headers)).status == 200
            assert (await local.ask("/v1/classify", picture(image_data))).status == 200

    run(scenario())
    assert len(threads) == 4
    assert all(name.startswith("MainThread" if count == 1 else "convert") for name in threads)


def test_large_pictures_do_not_wait_for_large_documents(
    tiny_bundle: Bundle, backends: list[GoldenBackend], image_data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(routes, "MAX_CONVERSIONS", 0)
    monkeypatch.setattr(routes, "MAX_INLINE_BYTES", 500)

    async def scenario() -> None:
        async with local_server(tiny_bundle, decodes=True) as local:
            large = picture(image_data) + bytes(500)
            assert (await local.ask("/v1/classify", large)).status == 200
            reply = await local.ask("/v1/classify", large, {"Content-Type": FORM})
            assert reply.json == {"error": "too many large documents at once"}

    run(scenario())


def test_a_budget_is_released() -> None:
    budget = ByteBudget(10)
    with budget.reservation("") as reservation:
        reservation.add(6)
        reservation.add(4)
        with pytest.raises(QueueFull):
            reservation.add(1)
    assert budget.used == 0


def test_the_network_that_holds_most_bytes_loses_its_oldest_body() -> None:
    async def scenario() -> None:
        budget = ByteBudget(10)
        with ExitStack() as stack:
            good, *crowd = [
                stack.enter_context(budget.reservation(network)) for network in ("good", *"cccc")
            ]
            for one in (good, *crowd):
                one.arriving = lambda error: None
            good.add(2)
            for one in crowd:
                one.add(3)  # the last two drop the first two
            assert [one.size for one in (good, *crowd)] == [2, 0, 0, 3, 3]
            good.add(5)
            assert [one.size for one in (good, *crowd)] == [7, 0, 0, 0, 3]
            with pytest.raises(QueueFull):  # its own network holds most
                good.add(1)

    run(scenario())


def test_before_loading_only_probes_are_answered(tiny_bundle: Bundle) -> None:
    async def scenario() -> None:
        async with local_server(tiny_bundle) as local:
            current, local.model._current = local.model._current, None
            assert (await local.ask("/healthz")).status == 200
            assert (await local.ask("/v2/health/ready")).status == 503
            assert (await local.ask("/v2/models/tiny/ready")).status == 503
            assert (await local.ask("/v2/models/tiny")).status == 503
            assert (await local.ask(INFER, b"{}")).status == 503
            assert (await local.ask("/v1/classify", b"x")).status == 503
            local.model._current = current

    run(scenario())


def test_a_draining_server_answers_but_is_not_ready(tiny_bundle: Bundle, image_data: Path) -> None:
    async def scenario() -> None:
        async with local_server(tiny_bundle, decodes=True) as local:
            local.service.readiness.draining = True
            assert (await local.ask("/v2/health/ready")).status == 503
            reply = await local.ask("/v1/classify", picture(image_data))
            assert reply.status == 200
            assert reply.headers["connection"] == "close"

    run(scenario())


def test_an_unexpected_error_is_500_without_details(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        with without_models() as local:
            monkeypatch.setattr(local.service, "server_metadata", lambda: 1 / 0)
            reply = await local.ask("/v2", headers={"X-Request-ID": "seven"})
            assert reply.status == 500
            assert reply.json == {"error": "the server failed"}
            assert counted(local, "failed")

    with caplog.at_level(logging.ERROR, "resdeploy"):
        run(scenario())
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.fields == {"request_id": "seven"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("timeout", ["1_000", "+5", "5.0", "\u0663", "", "0" * 21])
def test_numbers_have_ascii_digits_only(timeout: str) -> None:
    async def scenario() -> None:
        with without_models() as local:
            reply = await local.ask(INFER, b"x", {"X-Timeout-Ms": timeout})
            assert "X-Timeout-Ms must be an integer" in reply.json["error"]

    if timeout.isascii():
        run(scenario())
    with pytest.raises(RequestError):
        parse_integer(timeout, "a number", 0, 10)


@pytest.mark.parametrize("query", ["top=1&top=2", "top=0x1", "a&" * 600])
def test_a_query_is_short_and_its_parameters_occur_once(query: str) -> None:
    async def scenario() -> None:
        with without_models() as local:
            reply = await local.ask(f"/v1/classify?{query}", b"x")
            assert reply.status == 400

    run(scenario())


def test_a_client_cannot_extend_its_deadline(
    tiny_bundle: Bundle, backends: list[GoldenBackend]
) -> None:
    async def scenario() -> None:
        async with local_server(tiny_bundle, {"timeout_ms": 50}) as local:
            backends[0].hold.clear()
            body, headers = golden(local)
            tasks = [
                asyncio.ensure_future(local.ask(INFER, body, {**headers, "X-Timeout-Ms": "999999"}))
                for _ in range(2)
            ]
            await until(lambda: any(task.done() for task in tasks))
            backends[0].hold.set()
            assert 503 in [reply.status for reply in await asyncio.gather(*tasks)]

    run(scenario())


@pytest.mark.parametrize(
    ("token", "settings", "status"),
    [
        (None, {}, 403), (None, {"allow_host": ("evil.example",)}, 200),
        (None, {"host": "0.0.0.0"}, 200), (b"secret", {}, 401),
    ],
)  # fmt: skip
def test_other_sites_are_refused_without_a_token(
    token: bytes | None, settings: dict[str, Any], status: int
) -> None:
    async def scenario() -> None:
        with without_models(settings, token) as local:
            headers = {"Host": "evil.example:80"}
            assert (await local.ask("/v2", headers=headers)).status == status
            assert (await local.ask("/healthz", headers=headers)).status == 200

    run(scenario())


# Tokens


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("Bearer secret", 200),
        ("bearer  secret ", 200),
        ("Bearer secre", 401),
        ("Bearer secret2", 401),
        ("Bearer", 401),
        ("Basic secret", 401),
        ("secret", 401),
    ],
)
def test_a_token_is_required(header: str | None, status: int) -> None:
    async def scenario() -> None:
        with without_models(token=b"secret") as local:
            headers = {"Authorization": header} if header else {}
            for path in ("/v2", "/metrics", "/v1/stats", "/openapi.json"):
                assert (await local.ask(path, headers=headers)).status == status
            reply = await local.ask(INFER, [b"x", b"y"], headers, stalls=status == 401)
            assert reply.status == (401 if status == 401 else 404)
            if status == 401:
                assert reply.headers["www-authenticate"] == "Bearer"
            for path in ("/", "/docs", "/healthz", "/v2/health/live", "/v2/health/ready"):
                assert (await local.ask(path)).status == 200

    run(scenario())


def test_metrics_may_be_open() -> None:
    async def scenario() -> None:
        with without_models({"open_metrics": True}, b"secret") as local:
            assert (await local.ask("/metrics")).status == 200
            assert (await local.ask("/v1/stats")).status == 401
        with without_models({"open_metrics": True}) as local:  # of DNS rebinding
            foreign = await local.ask("/metrics", headers={"Host": "evil.example"})
            assert foreign.status == 403

    run(scenario())


def test_a_token_may_contain_any_bytes() -> None:
    check_token(b"Bearer \xff\x00", b"\xff\x00")
    with pytest.raises(Unauthorized):
        check_token(b"Bearer \xc3\xbc", b"u")


@pytest.mark.parametrize("header", [None, b"", b"a b", b"\n", b"x" * 129, "ü".encode()])
def test_unsafe_request_ids_are_replaced(header: bytes | None) -> None:
    assert len(choose_request_id(header)) == 16


def test_with_too_many_connections_only_probes_are_answered() -> None:
    async def scenario() -> None:
        with without_models(over_capacity=True) as local:
            assert (await local.ask("/healthz")).status == 200
            reply = await local.ask("/v2")
            assert reply.status == 503
            assert reply.headers["connection"] == "close"

    run(scenario())
