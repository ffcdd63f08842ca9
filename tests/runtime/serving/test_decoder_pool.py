"""Decoding of pictures in child processes."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resdeploy.images.decoder_process import PIXELS, REPLY
from resdeploy.images.loading import load_image
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.runtime.serving import decoder_pool
from resdeploy.runtime.serving.config import TOKEN_VARIABLE
from resdeploy.runtime.serving.decoder_pool import Decoder
from resdeploy.runtime.serving.request_errors import (
    DeadlineExceeded,
    QueueFull,
    RequestError,
    Unavailable,
)
from tests.runtime.serving.conftest import until
from tests.samples import encoded
from tests.serving_process import PATIENCE

PREPROCESSING = Preprocessing.standard(32)
PICTURES = [encoded(Image.new("RGB", (60, 40), (10 * i, 0, 200)), "JPEG") for i in range(5)]


def run(work: Coroutine[Any, Any, Any]) -> None:
    asyncio.run(asyncio.wait_for(work, PATIENCE))


def test_pixels_equal_those_of_all_other_stages_in_order() -> None:
    async def scenario() -> None:
        decoder = Decoder(3, max_pixels=10_000, max_wait=1.0)
        pixels, reasons = await decoder.decode(PICTURES, PREPROCESSING, math.inf)
        assert reasons == [None] * 5
        expected = np.stack([load_image(data, PREPROCESSING) for data in PICTURES])
        np.testing.assert_array_equal(pixels, expected)
        some, reasons = await decoder.decode([b"x", *PICTURES[:2]], PREPROCESSING, math.inf)
        np.testing.assert_array_equal(some, expected[:2])
        assert [reason is None for reason in reasons] == [False, True, True]
        decoder.close()

    run(scenario())


def test_a_picture_over_the_limit_is_rejected() -> None:
    async def scenario() -> None:
        decoder = Decoder(1, max_pixels=100, max_wait=1.0)
        with pytest.raises(RequestError, match="2,400 pixels; at most 100 are allowed"):
            await decoder.decode(PICTURES[:1], PREPROCESSING, math.inf)
        decoder.close()

    run(scenario())


@lru_cache
def large(mode: str, side: int) -> bytes:
    """Return a white PNG file."""
    return encoded(Image.new(mode, (side, side), "white"), "PNG")


async def ask_slow(decoder: Decoder, seconds: float) -> None:
    """Decode a picture of 50 kB that takes longer than any deadline here."""
    await decoder.decode(
        [large("RGB", 7000)], PREPROCESSING, asyncio.get_running_loop().time() + seconds
    )


def processes(decoder: Decoder) -> set[str]:
    assert decoder._template is not None
    return set(
        Path(f"/proc/{decoder._template.pid}/task/{decoder._template.pid}/children")
        .read_text()
        .split()
    )


def test_slow_pictures_end_at_their_deadline_and_others_are_decoded_meanwhile() -> None:
    async def scenario() -> None:
        decoder = Decoder(1, max_pixels=50_000_000, max_wait=1.0)
        await decoder.decode(PICTURES, PREPROCESSING, math.inf)
        with pytest.raises(DeadlineExceeded):
            await ask_slow(decoder, 0.1)
        await until(lambda: len(processes(decoder)) == 1)  # the decoder for it was killed
        slow = [asyncio.ensure_future(ask_slow(decoder, PATIENCE)) for _ in range(2)]
        await until(lambda: decoder._waiting == 2)
        await decoder.decode(PICTURES, PREPROCESSING, math.inf)
        slow[0].cancel()  # its client has left
        await until(lambda: decoder._waiting == 1)
        await decoder.decode(PICTURES, PREPROCESSING, math.inf)
        decoder.close()

    run(scenario())


def test_decoders_that_are_killed_are_replaced_and_end_with_the_pool() -> None:
    async def scenario() -> None:
        decoder = Decoder(2, max_pixels=10_000, max_wait=1.0)
        await decoder.decode(PICTURES, PREPROCESSING, math.inf)
        left = processes(decoder)
        assert len(left) == 2
        for process in left:
            os.kill(int(process), signal.SIGKILL)
        await decoder.decode(PICTURES, PREPROCESSING, math.inf)
        await until(lambda: len(processes(decoder)) == 2)
        left = processes(decoder)
        assert decoder._template is not None
        decoder._template.kill()
        decoder._template.wait()
        for process in left:
            os.kill(int(process), signal.SIGKILL)
        await decoder.decode(PICTURES, PREPROCESSING, math.inf)
        left |= processes(decoder)
        decoder.close()
        await until(lambda: not any(Path("/proc", process).exists() for process in left))

    run(scenario())


def test_overload_is_rejected() -> None:
    async def scenario() -> None:
        decoder = Decoder(1, max_pixels=10_000, max_wait=0.5)
        decoder._seconds_per_picture = 0.3
        decoding = asyncio.ensure_future(decoder.decode(PICTURES, PREPROCESSING, math.inf))
        decoder.check_capacity()
        await asyncio.sleep(0)  # now its pictures wait
        with pytest.raises(QueueFull) as caught:
            decoder.check_capacity()
        assert caught.value.retry_after == pytest.approx(1.5)
        decoding.cancel()
        await asyncio.wait([decoding])
        decoder.check_capacity()
        decoder.close()

    run(scenario())


def test_decoders_have_neither_the_token_nor_modules_of_the_current_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pickle.py").write_text("open('ran', 'w')")

    async def scenario() -> None:
        decoder = Decoder(1, max_pixels=10_000, max_wait=1.0)
        await decoder.decode(PICTURES, PREPROCESSING, math.inf)
        (process,) = processes(decoder)
        assert b"secret" not in Path(f"/proc/{process}/environ").read_bytes()
        decoder.close()

    run(scenario())
    assert not (tmp_path / "ran").exists()


def test_a_server_without_handles_or_processes_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        decoder = Decoder(1, max_pixels=50_000_000, max_wait=1.0)
        await decoder.decode(PICTURES, PREPROCESSING, math.inf)
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socketpair", raise_no_handles)
            with pytest.raises(DeadlineExceeded):
                await ask_slow(decoder, 0.0)  # its decoder is killed and cannot be replaced
            with pytest.raises(Unavailable, match="no process"):
                await decoder.decode(PICTURES, PREPROCESSING, math.inf)
        assert decoder._template is not None
        with monkeypatch.context() as patch:  # nor can the template
            decoder._template.kill()
            patch.setattr(sys, "executable", "/bin/false")
            with pytest.raises(Unavailable, match="no process"):
                await decoder.decode(PICTURES, PREPROCESSING, math.inf)
        await decoder.decode(PICTURES, PREPROCESSING, math.inf)
        os.kill(decoder._template.pid, signal.SIGSTOP)  # this one hears nothing
        for _ in range(300):
            decoder._idle.put_nowait(decoder._new_child())
            decoder._idle.get_nowait().end()
        await decoder.decode(PICTURES, PREPROCESSING, math.inf)
        decoder.close()

    run(scenario())


def raise_no_handles(*arguments: object) -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_large_pictures_share_one_budget_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    grey, colour = (encoded(Image.new(mode, (3000, 3000), "white"), "PNG") for mode in ("L", "RGB"))

    async def scenario() -> None:
        decoder = Decoder(2, max_pixels=50_000_000, max_wait=1.0)
        with pytest.raises(RequestError, match="needs 228 MiB to be decoded; at most 192"):
            await decoder.decode([large("RGBA", 5472)], PREPROCESSING, math.inf)
        free: list[int] = []
        result = decoder_pool._Child._result

        async def observe(child: Any, kind: int, *arguments: Any) -> Any:
            if kind == PIXELS:
                free.append(decoder._free_bytes)
            return await result(child, kind, *arguments)

        monkeypatch.setattr(decoder_pool._Child, "_result", observe)
        monkeypatch.setattr(decoder, "_free_bytes", 80_000_000)  # grey needs 72 MB, colour 36 MB
        pixels, _ = await decoder.decode([grey, colour, colour, grey], PREPROCESSING, math.inf)
        assert (pixels == 255).all()
        assert min(free) >= 0
        await until(lambda: decoder._free_bytes == 80_000_000)
        decoder.close()

    run(scenario())


def test_a_picture_that_ends_its_decoder_is_decoded_as_a_large_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    receive = decoder_pool._Child._receive
    ended: list[object] = []

    async def end_once(child: Any, length: int) -> bytearray:
        if length == REPLY.size and not ended:
            ended.append(child)
            raise EOFError
        return await receive(child, length)

    async def scenario() -> None:
        decoder = Decoder(1, max_pixels=10_000, max_wait=1.0)
        with monkeypatch.context() as patch:
            patch.setattr(decoder_pool._Child, "_receive", end_once)
            pixels, _ = await decoder.decode(PICTURES[:1], PREPROCESSING, math.inf)
        np.testing.assert_array_equal(pixels[0], load_image(PICTURES[0], PREPROCESSING))
        replaced = decoder._idle.get_nowait()
        assert replaced not in ended
        decoder._idle.put_nowait(replaced)
        decoder.close()

    run(scenario())
