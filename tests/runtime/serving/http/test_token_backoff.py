"""Delays after wrong tokens, with a clock of the tests."""

from __future__ import annotations

import asyncio

import pytest

from resdeploy.runtime.serving.http import token_backoff
from resdeploy.runtime.serving.http.token_backoff import TokenBackoff
from resdeploy.runtime.serving.request_errors import TooManyRequests


def test_delays_grow_to_a_maximum_for_each_network(monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []

    async def sleep(seconds: float) -> None:
        delays.append(seconds)

    async def scenario() -> None:
        backoff = TokenBackoff()
        monkeypatch.setattr("asyncio.sleep", sleep)
        for _ in range(token_backoff.FREE_ATTEMPTS):
            await backoff.wrong_token("a")
        assert delays == []
        for _ in range(8):
            await backoff.wrong_token("a")
        assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
        await backoff.wrong_token("b")
        assert len(delays) == 8
        monkeypatch.setattr(token_backoff, "FORGET_SECONDS", 0.0)
        await backoff.wrong_token("a")
        assert len(delays) == 8

    asyncio.run(scenario())


def test_the_table_and_the_delayed_answers_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(token_backoff, "MAX_NETWORKS", 3)
        backoff = TokenBackoff()
        for number in range(10):
            await backoff.wrong_token(str(number))
        assert len(backoff._failures) == 3
        for _ in range(token_backoff.FREE_ATTEMPTS):
            await backoff.wrong_token("a")
        delayed = [
            asyncio.ensure_future(backoff.wrong_token("a"))
            for _ in range(token_backoff.MAX_DELAYED)
        ]
        await asyncio.sleep(0)
        with pytest.raises(TooManyRequests):
            await backoff.wrong_token("a")
        for task in delayed:
            task.cancel()
        await asyncio.wait(delayed)
        assert backoff._delayed == 0

    asyncio.run(scenario())
