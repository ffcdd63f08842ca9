"""The composition and timing of batches, on a virtual clock."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdeploy.bundle.golden import Float32Array
from resdeploy.errors import BackendError
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.serving.batching.batcher import Batcher
from resdeploy.runtime.serving.batching.interface import Answer, BatchRecord, Instance
from resdeploy.runtime.serving.batching.service_times import ServiceTimes
from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.runtime.serving.request_errors import (
    DeadlineExceeded,
    NoAnswer,
    QueueFull,
    RequestError,
    TooLarge,
    Unavailable,
)
from tests.virtual_time import run

# 10 ms per batch plus 1 ms per image: larger batches have a higher throughput.
GAINING = {1: 0.011, 2: 0.012, 4: 0.014, 8: 0.018}
# 10 ms per image: the throughput does not depend on the batch size.
FLAT = {1: 0.010, 2: 0.020, 4: 0.040, 8: 0.080}


class FakeInstance:
    """An instance whose logits are the first pixels, and whose batches take the measured time."""

    backend = "fake"
    artifact = "fp32"

    def __init__(self, seconds: dict[int, float] = GAINING, fails: int = 0) -> None:
        self.times = ServiceTimes(seconds)
        self.batches: list[tuple[float, int]] = []
        self.fails = fails
        self.closed = False

    async def run(self, parts: Sequence[UInt8Array]) -> Float32Array:
        images = np.concatenate(parts)
        self.batches.append((round(asyncio.get_running_loop().time(), 6), len(images)))
        await asyncio.sleep(self.times.measured(len(images)))
        if self.fails:
            self.fails -= 1
            raise BackendError("the instance failed", "repair it")
        return images[:, 0, 0].astype(np.float32)

    async def close(self) -> None:
        self.closed = True


def pictures(count: int, first: int = 0) -> UInt8Array:
    images = np.zeros((count, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(first, first + count) % 256
    return images


async def ask(
    batcher: Batcher, images: UInt8Array, deadline: float = math.inf, network: str = ""
) -> Answer:
    with batcher.admit(len(images), deadline, network) as infer:
        return await infer(images)


def ignore(instance: Instance, error: Exception) -> None:
    raise AssertionError("unexpected failure")


def make_batcher(
    *instances: FakeInstance,
    on_failure: Callable[[Instance, Exception], None] = ignore,
    observe: Callable[[BatchRecord], None] = lambda record: None,
    **settings: Any,
) -> Batcher:
    batcher = Batcher(ServeConfig(**settings), on_failure=on_failure, observe=observe)
    for instance in instances:
        batcher.attach(instance)
    return batcher


def now() -> float:
    return asyncio.get_running_loop().time()


async def at(time: float, work: Coroutine[Any, Any, Any]) -> Any:
    await asyncio.sleep(time - now())
    return await work


def test_a_single_request_starts_immediately() -> None:
    async def scenario() -> None:
        instance = FakeInstance()
        batcher = make_batcher(instance, max_delay_ms=1000)
        for start in (0.0, 0.1, 0.2):
            answer = await at(start, ask(batcher, pictures(1, 7)))
            assert answer.logits.tolist() == [[7.0, 0.0, 0.0]]
            assert answer.queue_seconds == 0
            assert answer.batch == 1
            assert answer.inference_seconds == pytest.approx(0.011)
            assert (answer.backend, answer.artifact) == ("fake", "fp32")
        assert instance.batches == [(0.0, 1), (0.1, 1), (0.2, 1)]

    run(scenario())


def test_requests_collect_while_a_batch_runs() -> None:
    async def scenario() -> None:
        instance = FakeInstance()
        batcher = make_batcher(instance, max_delay_ms=0)
        tasks = [at(0.001 * i, ask(batcher, pictures(1, i))) for i in range(6)]
        answers = await asyncio.gather(*tasks)
        assert [int(answer.logits[0, 0]) for answer in answers] == list(range(6))
        assert instance.batches == [(0.0, 1), (0.011, 5)]
        assert answers[5].batch == 5
        assert answers[5].queue_seconds == pytest.approx(0.006)

    run(scenario())


def test_batches_do_not_exceed_the_best_size() -> None:
    async def scenario() -> None:
        gaining, flat = FakeInstance(GAINING), FakeInstance(FLAT)
        for instance in (gaining, flat):
            batcher = make_batcher(instance, max_wait_ms=10000)
            await asyncio.gather(*(ask(batcher, pictures(1)) for _ in range(20)))
        assert max(size for _, size in gaining.batches) == 8
        assert {size for _, size in flat.batches} == {1}

    run(scenario())


def test_a_batch_waits_briefly_for_requests_that_usually_arrive_together() -> None:
    async def scenario() -> None:
        instance = FakeInstance()
        batcher = make_batcher(instance, max_delay_ms=2)
        for burst in range(30):
            starts = [0.1 * burst + 0.0005 * i for i in range(4)]
            await asyncio.gather(*(at(start, ask(batcher, pictures(1))) for start in starts))
        assert [size for _, size in instance.batches[:2]] == [1, 3]
        assert [size for _, size in instance.batches[-2:]] == [4, 4]
        # When only one client is left, its requests are no longer delayed.
        single = [await ask(batcher, pictures(1)) for _ in range(60)]
        assert single[-1].queue_seconds == 0

    run(scenario())


def test_a_batch_starts_when_all_expected_requests_are_present() -> None:
    async def scenario() -> None:
        instance = FakeInstance()
        batcher = make_batcher(instance, max_delay_ms=500)
        for _ in range(30):
            await asyncio.gather(*(ask(batcher, pictures(1)) for _ in range(3)))
        last = await asyncio.gather(*(ask(batcher, pictures(1)) for _ in range(3)))
        assert last[0].batch == 3
        assert last[0].queue_seconds < 0.001

    run(scenario())


def test_instances_run_concurrently() -> None:
    async def scenario() -> None:
        first, second = FakeInstance(), FakeInstance()
        batcher = make_batcher(first, second, max_delay_ms=1000)
        for _ in range(20):
            await asyncio.gather(*(ask(batcher, pictures(1)) for _ in range(2)))
        assert [size for _, size in first.batches + second.batches] == [1] * 40
        assert now() == pytest.approx(20 * 0.011)

    run(scenario())


def test_a_large_request_runs_in_parts_and_keeps_its_order() -> None:
    async def scenario() -> None:
        instance = FakeInstance()
        batcher = make_batcher(instance, max_batch=8)
        answer = await ask(batcher, pictures(21))
        assert answer.logits[:, 0].tolist() == list(range(21))
        assert [size for _, size in instance.batches] == [8, 8, 5]
        assert answer.inference_seconds == pytest.approx(0.018 * 2 + 0.015)
        assert batcher.depth == 0

    run(scenario())


# Overload


def test_a_full_queue_rejects_with_a_retry_time() -> None:
    async def scenario() -> None:
        batcher = make_batcher(FakeInstance(FLAT), queue=8, max_wait_ms=100000)
        tasks = [asyncio.ensure_future(ask(batcher, pictures(1))) for _ in range(9)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="full") as caught:
            batcher.check_capacity(1)
        assert caught.value.retry_after == pytest.approx(0.09)  # eight are queued, one runs
        await asyncio.gather(*tasks)
        batcher.check_capacity(8)

    run(scenario())


def test_a_request_larger_than_the_queue_is_too_large() -> None:
    async def scenario() -> None:
        with pytest.raises(TooLarge, match="9 images in one request; 8 are allowed"):
            make_batcher(FakeInstance(), queue=8).check_capacity(9)

    run(scenario())


def test_a_long_expected_wait_is_rejected() -> None:
    async def scenario() -> None:
        batcher = make_batcher(FakeInstance(FLAT), max_wait_ms=55)
        tasks = [asyncio.ensure_future(ask(batcher, pictures(1))) for _ in range(20)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        answers = [answer for answer in results if isinstance(answer, Answer)]
        assert len(answers) == 6
        assert max(answer.queue_seconds for answer in answers) <= 0.055
        errors = [error for error in results if isinstance(error, Exception)]
        assert all(isinstance(error, QueueFull) for error in errors)

    run(scenario())


def test_an_engine_slower_than_the_maximum_wait_still_gets_full_batches() -> None:
    async def scenario() -> None:
        instance = FakeInstance({1: 1.0, 8: 1.2})
        batcher = make_batcher(instance, max_wait_ms=10)
        tasks = [asyncio.ensure_future(ask(batcher, pictures(1))) for _ in range(30)]
        await asyncio.gather(*tasks, return_exceptions=True)
        assert [size for _, size in instance.batches] == [1, 8]

    run(scenario())


def test_under_tenfold_load_the_wait_is_bounded_and_throughput_kept() -> None:
    async def scenario(gap: float) -> tuple[list[float], int, float]:
        instance = FakeInstance(FLAT)
        batcher = make_batcher(instance, max_wait_ms=100)
        latencies: list[float] = []
        rejected = 0

        async def client(start: float) -> None:
            nonlocal rejected
            await asyncio.sleep(start)
            try:
                await ask(batcher, pictures(1))
            except QueueFull:
                rejected += 1
            else:
                latencies.append(now() - start)

        await asyncio.gather(*(client(gap * i) for i in range(int(5 / gap))))
        return latencies, rejected, now()

    at_capacity, few, _ = run(scenario(0.0101))
    overloaded, many, took = run(scenario(0.001))
    assert few == 0
    assert many > 4000
    assert len(overloaded) / took == pytest.approx(100, rel=0.02)  # images a second
    assert np.percentile(overloaded, 99) < 0.125
    assert np.percentile(at_capacity, 99) < 0.02


def test_tenfold_load_of_one_network_delays_others_by_two_batches_at_most() -> None:
    async def scenario(surplus: int) -> tuple[list[float], float]:
        instance = FakeInstance(FLAT)
        batcher = make_batcher(instance, max_wait_ms=100)
        latencies: list[float] = []

        async def crowd(number: int) -> None:
            await asyncio.sleep(number / 1000)
            with suppress(QueueFull):
                await ask(batcher, pictures(1 + number % 3), network="crowd")

        async def good(network: str) -> None:
            while now() < 5:
                start = now()
                await ask(batcher, pictures(1), network=network)
                latencies.append(now() - start)
                await asyncio.sleep(0.1)

        crowds = (crowd(number) for number in range(surplus))
        await asyncio.gather(good("one"), good("two"), *crowds)
        return latencies, sum(size for _, size in instance.batches) / now()

    quiet, _ = run(scenario(0))
    busy, images_per_second = run(scenario(5000))
    assert max(quiet) <= 0.021
    # A batch of up to three images runs already, and one image of each network may come first.
    assert max(busy) <= 0.061
    assert images_per_second == pytest.approx(100, rel=0.03)


def test_the_network_that_fills_the_queue_makes_room_for_others() -> None:
    async def scenario() -> None:
        batcher = make_batcher(FakeInstance(FLAT), queue=8, max_wait_ms=100000)
        crowd = [
            asyncio.ensure_future(ask(batcher, pictures(1, number), network="crowd"))
            for number in range(9)
        ]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            batcher.check_capacity(1, network="crowd")
        batcher.check_capacity(1, network="other")  # which drops nothing yet
        with batcher.admit(2, math.inf, "third"):  # cannot be dropped: its images are decoded
            answer = await ask(batcher, pictures(2), network="other")
        assert answer.queue_seconds == pytest.approx(0.02)  # one runs, and one of the crowd is next
        results = await asyncio.gather(*crowd, return_exceptions=True)
        assert [isinstance(result, QueueFull) for result in results] == [False] * 5 + [True] * 4
        assert batcher.depth == 0

    run(scenario())


def test_the_queue_is_a_limit_while_all_its_pictures_are_decoded() -> None:
    async def scenario() -> None:
        batcher = make_batcher(FakeInstance(), queue=8, max_wait_ms=100000)
        with batcher.admit(8, math.inf, "crowd"):
            with pytest.raises(QueueFull), batcher.admit(1, math.inf, "other"):
                pass
            assert batcher.depth == 8

    run(scenario())


def test_reserved_space_counts_while_its_picture_is_decoded() -> None:
    async def scenario() -> None:
        batcher = make_batcher(FakeInstance(), queue=8)
        with batcher.admit(8, math.inf):
            assert batcher.depth == 8
            with pytest.raises(QueueFull):
                batcher.check_capacity(1)
        assert batcher.depth == 0
        batcher.check_capacity(8)

    run(scenario())


# Deadlines


def test_an_impossible_deadline_is_rejected_at_once() -> None:
    async def scenario() -> None:
        instance = FakeInstance(FLAT)
        batcher = make_batcher(instance, max_wait_ms=10000)
        tasks = [asyncio.ensure_future(ask(batcher, pictures(1))) for _ in range(10)]
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceeded, match="cannot be met"):
            batcher.check_capacity(1, deadline=now() + 0.1)
        batcher.check_capacity(1, deadline=now() + 0.2)
        with pytest.raises(DeadlineExceeded):
            batcher.check_capacity(1, deadline=now() - 1)
        await asyncio.gather(*tasks)

    run(scenario())


def test_a_request_that_misses_its_deadline_is_dropped_before_inference() -> None:
    async def scenario() -> None:
        instance = FakeInstance(FLAT)
        batcher = make_batcher(instance)
        tasks = [
            asyncio.ensure_future(ask(batcher, pictures(1), deadline))
            for deadline in (math.inf, 0.025, math.inf)
        ]
        await asyncio.sleep(0)
        instance.times.measured = lambda images: 0.02  # type: ignore[method-assign]
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers[1], DeadlineExceeded)
        assert sum(size for _, size in instance.batches) == 2

    run(scenario())


def test_a_deadline_that_passes_in_the_queue_is_reported_immediately() -> None:
    async def scenario() -> None:
        batcher = make_batcher(FakeInstance({1: 1.0}), max_batch=1)
        first = asyncio.ensure_future(ask(batcher, pictures(1)))
        await asyncio.sleep(0.5)
        batcher._instances[0].times = ServiceTimes({1: 0.01})  # the expected wait becomes short
        batcher._running.clear()
        with pytest.raises(DeadlineExceeded, match="passed"):
            await ask(batcher, pictures(1), deadline=0.7)
        assert now() == pytest.approx(0.7)
        await first
        assert batcher.depth == 0

    run(scenario())


def test_an_idle_engine_accepts_a_tight_deadline() -> None:
    async def scenario() -> None:
        instance = FakeInstance()
        batcher = make_batcher(instance)
        for _ in range(50):
            instance.times.observe(1, 10.0)  # a recent slowdown
        answer = await ask(batcher, pictures(1), deadline=now() + 0.012)
        assert answer.batch == 1

    run(scenario())


# Cancellation


def test_cancellation_removes_queued_images() -> None:
    async def scenario() -> None:
        instance = FakeInstance()
        batcher = make_batcher(instance)
        running = asyncio.ensure_future(ask(batcher, pictures(1)))
        await asyncio.sleep(0.001)
        waiting = [asyncio.ensure_future(ask(batcher, pictures(2))) for _ in range(2)]
        await asyncio.sleep(0.001)
        assert batcher.depth == 4
        waiting[0].cancel()
        running.cancel()
        await asyncio.gather(*waiting, running, return_exceptions=True)
        assert [size for _, size in instance.batches] == [1, 2]
        assert batcher.depth == 0
        await batcher.wait_until_answered()

    run(scenario())


# Failures


def test_a_failed_instance_is_detached_and_its_images_run_on_another() -> None:
    async def scenario() -> None:
        broken, spare = FakeInstance(fails=1), FakeInstance()
        failed: list[Instance] = []

        def replace(instance: Instance, error: Exception) -> None:
            failed.append(instance)
            batcher.attach(spare)

        batcher = make_batcher(broken, on_failure=replace)
        answers = await asyncio.gather(*(ask(batcher, pictures(1, i)) for i in range(3)))
        assert [int(answer.logits[0, 0]) for answer in answers] == [0, 1, 2]
        assert failed == [broken]
        assert batcher.instances == (spare,)

    run(scenario())


def test_without_an_instance_no_request_is_admitted() -> None:
    async def scenario() -> None:
        batcher = make_batcher(FakeInstance(fails=1), on_failure=lambda instance, error: None)
        waiting = asyncio.ensure_future(ask(batcher, pictures(1), deadline=5.0))
        await asyncio.sleep(1)
        with pytest.raises(Unavailable, match="not ready"):
            batcher.check_capacity(1)
        with pytest.raises(DeadlineExceeded):
            await waiting
        assert now() == pytest.approx(5)

    run(scenario())


def test_queued_requests_can_be_failed() -> None:
    async def scenario() -> None:
        batcher = make_batcher(FakeInstance(fails=1), on_failure=lambda instance, error: None)
        waiting = asyncio.ensure_future(ask(batcher, pictures(1)))
        await asyncio.sleep(1)
        batcher.fail_queued("the model failed")
        with pytest.raises(Unavailable, match="the model failed"):
            await waiting
        assert batcher.depth == 0

    run(scenario())


def test_a_request_that_fails_twice_is_not_retried() -> None:
    async def scenario() -> None:
        spares = [FakeInstance(fails=9), FakeInstance()]
        batcher = make_batcher(
            FakeInstance(fails=9),
            on_failure=lambda instance, error: batcher.attach(spares.pop(0)),
        )
        with pytest.raises(Unavailable, match="the model failed"):
            await ask(batcher, pictures(1))
        assert len(spares) == 0
        assert (await ask(batcher, pictures(1))).batch == 1

    run(scenario())


def test_a_request_that_failed_runs_alone_so_that_it_fails_no_other() -> None:
    async def scenario() -> None:
        class Fragile(FakeInstance):
            async def run(self, parts: Sequence[UInt8Array]) -> Float32Array:
                self.fails = int(any(part[0, 0, 0, 0] == 99 for part in parts))
                return await super().run(parts)

        batcher = make_batcher(
            Fragile(), on_failure=lambda instance, error: batcher.attach(Fragile()), max_delay_ms=0
        )
        first = asyncio.ensure_future(ask(batcher, pictures(1)))
        waiting = (ask(batcher, pictures(1, first)) for first in (1, 99, 2))
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Answer, Unavailable, Answer]
        await first

    run(scenario())


def test_a_request_ends_at_its_deadline_while_its_batch_runs() -> None:
    async def scenario() -> None:
        class Slow(FakeInstance):
            async def run(self, parts: Sequence[UInt8Array]) -> Float32Array:
                await asyncio.sleep(10)
                return await super().run(parts)

        batcher = make_batcher(Slow())
        with pytest.raises(DeadlineExceeded):
            await ask(batcher, pictures(1), deadline=1.0)
        assert now() == pytest.approx(1)

    run(scenario())


def test_an_image_without_finite_logits_fails_only_its_request() -> None:
    async def scenario() -> None:
        class Poisoned(FakeInstance):
            async def run(self, parts: Sequence[UInt8Array]) -> Float32Array:
                logits = await super().run(parts)
                return np.where(logits == 7, np.nan, logits)

        batcher = make_batcher(Poisoned(), max_delay_ms=0)
        requests = (ask(batcher, pictures(1, number)) for number in (5, 6, 7, 8))
        outcomes = await asyncio.gather(*requests, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Answer, Answer, NoAnswer, Answer]
        assert len(batcher.instances) == 1

    run(scenario())


def test_a_detached_instance_finishes_its_batch() -> None:
    async def scenario() -> None:
        instance, spare = FakeInstance(), FakeInstance()
        batcher = make_batcher(instance)
        running = asyncio.ensure_future(ask(batcher, pictures(1)))
        await asyncio.sleep(0.001)
        batcher.detach(instance)
        batcher.attach(spare)
        await asyncio.gather(running, ask(batcher, pictures(1)))
        assert len(instance.batches) == len(spare.batches) == 1
        await ask(batcher, pictures(1))
        assert len(spare.batches) == 2

    run(scenario())


# Properties


@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(1, 12), st.integers(1, 60), st.booleans()),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 3),
)
def test_every_request_ends_and_the_queue_empties(
    requests: list[tuple[int, int, int, bool]], instances: int
) -> None:
    async def client(batcher: Batcher, request: tuple[int, int, int, bool], first: int) -> None:
        start, count, timeout_ms, cancelled = request
        await asyncio.sleep(start / 1000)
        task = asyncio.ensure_future(
            ask(batcher, pictures(count, first), deadline=now() + timeout_ms / 1000)
        )
        if cancelled:
            await asyncio.sleep(timeout_ms / 2000)
            task.cancel()
        try:
            answer = await task
        except (RequestError, asyncio.CancelledError):
            return
        assert answer.logits[:, 0].tolist() == [(first + i) % 256 for i in range(count)]

    async def scenario() -> None:
        batches: list[int] = []
        engines = [FakeInstance() for _ in range(instances)]
        batcher = make_batcher(
            *engines,
            queue=16,
            max_batch=8,
            max_wait_ms=50,
            observe=lambda record: batches.append(record.images),
        )
        clients = [client(batcher, request, 7 * i) for i, request in enumerate(requests)]
        await asyncio.gather(*clients)
        await batcher.wait_until_answered()
        assert batcher.depth == 0
        assert all(size <= 8 for size in batches)
        batcher.check_capacity(16)  # the whole queue is free

    run(scenario())
