"""Decoding of pictures in a thread pool."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resdeploy.images.loading import load_image
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.runtime.serving import decoder_pool
from resdeploy.runtime.serving.decoder_pool import Decoder
from resdeploy.runtime.serving.request_errors import DeadlineExceeded, QueueFull, RequestError
from tests.samples import encoded
from tests.serving_process import PATIENCE

PREPROCESSING = Preprocessing.standard(32)
PICTURES = [encoded(Image.new("RGB", (60, 40), (10 * i, 0, 200)), "JPEG") for i in range(5)]


def run(work: Coroutine[Any, Any, Any]) -> None:
    asyncio.run(asyncio.wait_for(work, PATIENCE))


def test_pixels_equal_those_of_all_other_stages_in_order() -> None:
    async def scenario() -> None:
        decoder = Decoder(3, max_pixels=10_000, max_wait=1.0)
        pixels = await decoder.decode(PICTURES, PREPROCESSING, math.inf)
        expected = np.stack([load_image(data, PREPROCESSING) for data in PICTURES])
        np.testing.assert_array_equal(pixels, expected)
        decoder.close()

    run(scenario())


def test_a_picture_over_the_limit_is_rejected() -> None:
    async def scenario() -> None:
        decoder = Decoder(1, max_pixels=100, max_wait=1.0)
        with pytest.raises(RequestError, match="2,400 pixels; at most 100 are allowed"):
            await decoder.decode(PICTURES[:1], PREPROCESSING, math.inf)
        decoder.close()

    run(scenario())


def test_a_picture_is_not_decoded_after_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_pool, "load_image", lambda *_: pytest.fail("it was decoded"))

    async def scenario() -> None:
        decoder = Decoder(1, max_pixels=100, max_wait=1.0)
        with pytest.raises(DeadlineExceeded):
            await decoder.decode(PICTURES, PREPROCESSING, asyncio.get_running_loop().time() - 1)
        decoder.close()

    run(scenario())


def test_overload_is_rejected_and_cancellation_removes_pending_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, hold = threading.Event(), threading.Event()
    decoded: list[bytes] = []

    def slow(data: bytes, *_: Any) -> Any:
        begun.set()
        assert hold.wait(PATIENCE)
        decoded.append(data)
        return np.zeros((32, 32, 3), np.uint8)

    monkeypatch.setattr(decoder_pool, "load_image", slow)

    async def scenario() -> None:
        decoder = Decoder(1, max_pixels=100, max_wait=0.5)
        decoder._seconds_per_picture = 0.3
        first = asyncio.ensure_future(decoder.decode(PICTURES[:1], PREPROCESSING, math.inf))
        await asyncio.to_thread(begun.wait, PATIENCE)
        decoder.check_capacity()
        second = asyncio.ensure_future(decoder.decode(PICTURES[1:], PREPROCESSING, math.inf))
        await asyncio.sleep(0)  # now its jobs are in the pool
        with pytest.raises(QueueFull) as caught:
            decoder.check_capacity()
        assert caught.value.retry_after == pytest.approx(1.5)
        second.cancel()
        await asyncio.wait([second])
        decoder.check_capacity()
        hold.set()
        await first
        assert decoded == PICTURES[:1]
        decoder.close()

    run(scenario())
