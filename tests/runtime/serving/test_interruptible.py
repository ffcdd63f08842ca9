"""Blocks of a task that a deadline or another task ends with an error."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Coroutine
from typing import Any

import pytest

from resdeploy.runtime.serving.interruptible import interruptible

LATE = TimeoutError("late")


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def test_the_deadline_ends_a_block_and_the_task_goes_on() -> None:
    async def scenario() -> None:
        with pytest.raises(TimeoutError, match="late") as caught, interruptible(0.0, LATE):
            await asyncio.sleep(60)
        assert caught.value is LATE
        await asyncio.sleep(0)  # the task is not cancelled
        task = asyncio.current_task()
        assert task is not None
        assert sys.version_info < (3, 11) or task.cancelling() == 0

    run(scenario())


def test_only_the_first_reason_counts_and_none_after_the_end() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(ValueError, match="first"), interruptible(math.inf, LATE) as interrupt:
            loop.call_soon(interrupt, ValueError("first"))
            loop.call_soon(interrupt, ValueError("second"))
            await asyncio.sleep(60)
        with interruptible(0.0, LATE) as other:
            pass
        interrupt(ValueError("after the end"))
        other(ValueError("after the end"))
        await asyncio.sleep(0.001)

    run(scenario())


def test_an_outer_block_ends_the_inner_one() -> None:
    async def scenario() -> None:
        with pytest.raises(ValueError, match="outer"), interruptible(math.inf, LATE) as interrupt:
            asyncio.get_running_loop().call_soon(interrupt, ValueError("outer"))
            with interruptible(math.inf, LATE):
                await asyncio.sleep(60)

    run(scenario())


def test_a_cancelled_task_stays_cancelled() -> None:
    async def wait() -> None:
        with interruptible(math.inf, LATE):
            await asyncio.sleep(60)

    async def scenario() -> None:
        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    run(scenario())
