"""Tests of the limits on messages, with calls that are only objects here."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.runtime.serving.grpc import message_reader
from resdeploy.runtime.serving.grpc.message_reader import (
    ENVELOPE_BYTES,
    MAX_FIELDS,
    MessageReader,
    parse_small,
    split_tensors,
)
from resdeploy.runtime.serving.grpc.messages import load_methods
from resdeploy.runtime.serving.request_errors import (
    QueueFull,
    RequestError,
    RequestTimeout,
    TooLarge,
)
from tests.serving_process import PATIENCE

TWO_PLACES = ServeConfig(max_body_mib=1, bodies_mib=4, body_seconds=PATIENCE)
REQUEST = load_methods()["ModelInfer"].request


class SilentCall:
    """A call whose message arrives when `arrived` is set."""

    def __init__(self, message: object = b"x") -> None:
        self.arrived = asyncio.Event()
        self._message = message

    async def read(self) -> object:
        await self.arrived.wait()
        return self._message


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, PATIENCE))


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_reader, "SLOW_SECONDS", 0.0)


@pytest.mark.usefixtures("_impatient")
def test_the_slowest_message_gives_its_place_to_the_next() -> None:
    async def scenario() -> None:
        reader = MessageReader(TWO_PLACES)
        slow = [asyncio.ensure_future(reader.read(SilentCall())) for _ in range(2)]
        await asyncio.sleep(0)
        quick = SilentCall()
        quick.arrived.set()
        assert await reader.read(quick) == b"x"
        with pytest.raises(RequestTimeout):
            await slow[0]
        assert not slow[1].done()
        slow[1].cancel()

    run(scenario())


def test_a_message_waits_for_a_place_and_too_many_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(message_reader, "SLOW_SECONDS", PATIENCE)
    monkeypatch.setattr(message_reader, "MAX_WAITING", 1)

    async def scenario() -> None:
        reader = MessageReader(TWO_PLACES)
        calls = [SilentCall() for _ in range(3)]
        tasks = [asyncio.ensure_future(reader.read(call)) for call in calls]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await reader.read(SilentCall())
        for call in calls:
            call.arrived.set()
        assert await asyncio.gather(*tasks) == [b"x"] * 3

    run(scenario())


def test_a_message_has_a_time_limit_and_must_exist() -> None:
    async def scenario() -> None:
        reader = MessageReader(ServeConfig(body_seconds=0))
        with pytest.raises(RequestTimeout):
            await reader.read(SilentCall())
        ended = SilentCall(object())
        ended.arrived.set()
        with pytest.raises(RequestError, match="no message"):
            await MessageReader(TWO_PLACES).read_only(ended)

    run(scenario())


def test_complete_messages_and_unread_answers_are_counted() -> None:
    reader = MessageReader(TWO_PLACES)
    calls = [Mock(peer=lambda: "ipv4:10.0.0.7:1") for _ in range(3)]
    first, second, third = (reader.reserve(call) for call in calls)
    first.add(1 << 20)
    second.add(1 << 20)
    with pytest.raises(QueueFull):
        third.add(1)
    first.arriving = unread = Mock()
    third.add(1 << 20)
    unread.assert_called_once()
    calls[1].add_done_callback.call_args.args[0](calls[1])
    first.add(1 << 20)


@given(st.lists(st.binary(max_size=300), max_size=4), st.text(max_size=200), st.booleans())
def test_tensors_are_split_off(tensors: list[bytes], name: str, reverse: bool) -> None:
    request = REQUEST(model_name=name, inputs=[{"name": name, "shape": [1, -2]}] * 3)
    parts = [request.SerializeToString(), REQUEST(raw_input_contents=tensors).SerializeToString()]
    others, found = split_tensors(b"".join(parts[::-1] if reverse else parts))
    assert [bytes(tensor) for tensor in found] == tensors
    assert parse_small(REQUEST, others) == request


@given(st.binary(max_size=40))
def test_any_bytes_are_split_or_refused_as_protobuf_does(data: bytes) -> None:
    try:
        others, tensors = split_tensors(data)
        request = parse_small(REQUEST, others)
    except RequestError:
        return
    assert not request.raw_input_contents
    assert list(REQUEST.FromString(data).raw_input_contents) == tensors


@pytest.mark.parametrize(
    "data", [b"\x2a\x00" * (MAX_FIELDS + 1), b"\x3a\x05x", b"\x3a", b"\x80" * 11, b"\x3b\x3c"]
)
def test_wrong_messages_are_refused(data: bytes) -> None:
    with pytest.raises(RequestError):
        split_tensors(data)


def test_what_protobuf_parses_is_small() -> None:
    with pytest.raises(TooLarge):
        parse_small(REQUEST, b"\x2a\x00" * ENVELOPE_BYTES)
