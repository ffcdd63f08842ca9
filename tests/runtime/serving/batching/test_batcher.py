"""Who runs with whom and when, on a clock that the tests move."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdeploy.bundle.golden import Float32Array
from resdeploy.errors import BackendError
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.serving.batching.batcher import Batcher, BatcherLimits
from resdeploy.runtime.serving.batching.instance import Answer, BatchRecord, Instance
from resdeploy.runtime.serving.batching.service_times import ServiceTimes
from resdeploy.runtime.serving.request_errors import (
    DeadlineExceeded,
    QueueFull,
    RequestError,
    TooLarge,
    Unavailable,
)
from tests.virtual_time import run

# 10 ms and 1 ms an image, so that larger batches are always better.
GAINING = {1: 0.011, 2: 0.012, 4: 0.014, 8: 0.018}
# 10 ms an image, whatever the batch.
FLAT = {1: 0.010, 2: 0.020, 4: 0.040, 8: 0.080}


class FakeInstance:
    """Its logits are its images' first pixels; each batch takes as long as is predicted."""

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
        await asyncio.sleep(self.times.undisturbed(len(images)))
        if self.fails:
            self.fails -= 1
            raise BackendError("it is broken", "mend it")
        return images[:, 0, 0].astype(np.float32)

    async def close(self) -> None:
        self.closed = True


def pictures(count: int, first: int = 0) -> UInt8Array:
    images = np.zeros((count, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(first, first + count) % 256
    return images


async def ask(batcher: Batcher, images: UInt8Array, deadline: float = math.inf) -> Answer:
    with batcher.admit(len(images), deadline) as place:
        return await place.run(images)


def ignore(instance: Instance, error: Exception) -> None:
    raise AssertionError("nothing fails here")


def make_batcher(
    *instances: FakeInstance,
    on_failure: Callable[[Instance, Exception], None] = ignore,
    observe: Callable[[BatchRecord], None] = lambda record: None,
    **limits: Any,
) -> Batcher:
    batcher = Batcher(BatcherLimits(**limits), on_failure=on_failure, observe=observe)
    for instance in instances:
        batcher.attach(instance)
    return batcher


def now() -> float:
    return asyncio.get_running_loop().time()


async def at(time: float, work: Coroutine[Any, Any, Any]) -> Any:
    await asyncio.sleep(time - now())
    return await work


def test_a_request_alone_starts_at_once() -> None:
    async def scenario() -> None:
        instance = FakeInstance()
        batcher = make_batcher(instance, max_delay=1.0)
        for start in (0.0, 0.1, 0.2):
            answer = await at(start, ask(batcher, pictures(1, 7)))
            assert answer.logits.tolist() == [[7.0, 0.0, 0.0]]
            assert answer.queue_seconds == 0
            assert answer.batch == 1
            assert answer.inference_seconds == pytest.approx(0.011)
            assert (answer.backend, answer.artifact) == ("fake", "fp32")
        assert instance.batches == [(0.0, 1), (0.1, 1), (0.2, 1)]

    run(scenario())


def test_while_a_batch_runs_the_next_one_collects() -> None:
    async def scenario() -> None:
        instance = FakeInstance()
        batcher = make_batcher(instance, max_delay=0.0)
        asked = [at(0.001 * i, ask(batcher, pictures(1, i))) for i in range(6)]
        answers = await asyncio.gather(*asked)
        assert [int(answer.logits[0, 0]) for answer in answers] == list(range(6))
        assert instance.batches == [(0.0, 1), (0.011, 5)]
        assert answers[5].batch == 5
        assert answers[5].queue_seconds == pytest.approx(0.006)

    run(scenario())


def test_a_batch_takes_no_more_than_is_worthwhile() -> None:
    async def scenario() -> None:
        gaining, flat = FakeInstance(GAINING), FakeInstance(FLAT)
        for instance in (gaining, flat):
            batcher = make_batcher(instance, max_wait=10.0)
            await asyncio.gather(*(ask(batcher, pictures(1)) for _ in range(20)))
        assert max(size for _, size in gaining.batches) == 8
        assert {size for _, size in flat.batches} == {1}

    run(scenario())


def test_company_that_is_expected_is_waited_for_but_not_long() -> None:
    async def scenario() -> None:
        instance = FakeInstance()
        batcher = make_batcher(instance, max_delay=0.002)
        for burst in range(30):
            starts = [0.1 * burst + 0.0005 * i for i in range(4)]
            await asyncio.gather(*(at(start, ask(batcher, pictures(1))) for start in starts))
        assert [size for _, size in instance.batches[:2]] == [1, 3]
        assert [size for _, size in instance.batches[-2:]] == [4, 4]
        # When all but one have gone, that one waits for nobody any more.
        lonely = [await ask(batcher, pictures(1)) for _ in range(60)]
        assert lonely[-1].queue_seconds == 0

    run(scenario())


def test_nobody_waits_when_all_who_are_expected_are_there() -> None:
    async def scenario() -> None:
        instance = FakeInstance()
        batcher = make_batcher(instance, max_delay=0.5)
        for _ in range(30):
            await asyncio.gather(*(ask(batcher, pictures(1)) for _ in range(3)))
        last = await asyncio.gather(*(ask(batcher, pictures(1)) for _ in range(3)))
        assert last[0].batch == 3
        assert last[0].queue_seconds < 0.001

    run(scenario())


def test_instances_run_at_the_same_time() -> None:
    async def scenario() -> None:
        one, other = FakeInstance(), FakeInstance()
        batcher = make_batcher(one, other, max_delay=1.0)
        for _ in range(20):
            await asyncio.gather(*(ask(batcher, pictures(1)) for _ in range(2)))
        assert [size for _, size in one.batches + other.batches] == [1] * 40
        assert now() == pytest.approx(20 * 0.011)

    run(scenario())


def test_a_request_of_many_images_runs_in_parts_and_comes_back_in_order() -> None:
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


def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    async def scenario() -> None:
        batcher = make_batcher(FakeInstance(FLAT), queue=8, max_wait=100.0)
        asked = [asyncio.ensure_future(ask(batcher, pictures(1))) for _ in range(9)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="full") as caught:
            batcher.check(1)
        assert caught.value.retry_after == pytest.approx(0.09)  # eight wait, one runs
        await asyncio.gather(*asked)
        batcher.check(8)

    run(scenario())


def test_more_than_the_queue_holds_is_never_admitted() -> None:
    async def scenario() -> None:
        with pytest.raises(TooLarge, match="9 images in one request; 8 are allowed"):
            make_batcher(FakeInstance(), queue=8).check(9)

    run(scenario())


def test_a_queue_that_takes_too_long_refuses() -> None:
    async def scenario() -> None:
        batcher = make_batcher(FakeInstance(FLAT), max_wait=0.055)
        asked = [asyncio.ensure_future(ask(batcher, pictures(1))) for _ in range(20)]
        refused = await asyncio.gather(*asked, return_exceptions=True)
        answers = [answer for answer in refused if isinstance(answer, Answer)]
        assert len(answers) == 6
        assert max(answer.queue_seconds for answer in answers) <= 0.055
        errors = [error for error in refused if isinstance(error, Exception)]
        assert all(isinstance(error, QueueFull) for error in errors)

    run(scenario())


def test_an_engine_slower_than_the_longest_wait_still_gets_whole_batches() -> None:
    async def scenario() -> None:
        instance = FakeInstance({1: 1.0, 8: 1.2})
        batcher = make_batcher(instance, max_wait=0.01)
        asked = [asyncio.ensure_future(ask(batcher, pictures(1))) for _ in range(30)]
        await asyncio.gather(*asked, return_exceptions=True)
        assert [size for _, size in instance.batches] == [1, 8]

    run(scenario())


def test_at_ten_times_the_load_waiting_stays_bounded_and_the_engine_busy() -> None:
    async def scenario(gap: float) -> tuple[list[float], int, float]:
        instance = FakeInstance(FLAT)
        batcher = make_batcher(instance, max_wait=0.1)
        latencies: list[float] = []
        refused = 0

        async def client(start: float) -> None:
            nonlocal refused
            await asyncio.sleep(start)
            try:
                await ask(batcher, pictures(1))
            except QueueFull:
                refused += 1
            else:
                latencies.append(now() - start)

        await asyncio.gather(*(client(gap * i) for i in range(int(5 / gap))))
        return latencies, refused, now()

    at_capacity, few, _ = run(scenario(0.0101))
    overloaded, many, took = run(scenario(0.001))
    assert few == 0
    assert many > 4000
    assert len(overloaded) / took == pytest.approx(100, rel=0.02)  # images a second
    assert np.percentile(overloaded, 99) < 0.125
    assert np.percentile(at_capacity, 99) < 0.02


def test_a_place_counts_while_its_picture_is_being_decoded() -> None:
    async def scenario() -> None:
        batcher = make_batcher(FakeInstance(), queue=8)
        with batcher.admit(8, math.inf):
            assert batcher.depth == 8
            with pytest.raises(QueueFull):
                batcher.check(1)
        assert batcher.depth == 0
        batcher.check(8)

    run(scenario())


# Deadlines


def test_what_cannot_be_met_is_refused_before_it_waits() -> None:
    async def scenario() -> None:
        instance = FakeInstance(FLAT)
        batcher = make_batcher(instance, max_wait=10.0)
        asked = [asyncio.ensure_future(ask(batcher, pictures(1))) for _ in range(10)]
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceeded, match="cannot be met"):
            batcher.check(1, deadline=now() + 0.1)
        batcher.check(1, deadline=now() + 0.2)
        with pytest.raises(DeadlineExceeded):
            batcher.check(1, deadline=now() - 1)
        await asyncio.gather(*asked)

    run(scenario())


def test_what_became_late_is_dropped_before_it_costs_inference() -> None:
    async def scenario() -> None:
        instance = FakeInstance(FLAT)
        batcher = make_batcher(instance)
        asked = [
            asyncio.ensure_future(ask(batcher, pictures(1), deadline))
            for deadline in (math.inf, 0.025, math.inf)
        ]
        await asyncio.sleep(0)
        instance.times.undisturbed = lambda images: 0.02  # type: ignore[method-assign]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(answers[1], DeadlineExceeded)
        assert sum(size for _, size in instance.batches) == 2

    run(scenario())


def test_a_deadline_that_passes_in_the_queue_is_said_in_time() -> None:
    async def scenario() -> None:
        batcher = make_batcher(FakeInstance({1: 1.0}), max_batch=1)
        first = asyncio.ensure_future(ask(batcher, pictures(1)))
        await asyncio.sleep(0.5)
        batcher._instances[0].times = ServiceTimes({1: 0.01})  # it is expected to be quick
        batcher._runs.clear()
        with pytest.raises(DeadlineExceeded, match="passed"):
            await ask(batcher, pictures(1), deadline=0.7)
        assert now() == pytest.approx(0.7)
        await first
        assert batcher.depth == 0

    run(scenario())


def test_an_idle_engine_takes_what_has_just_time_enough() -> None:
    async def scenario() -> None:
        instance = FakeInstance()
        batcher = make_batcher(instance)
        for _ in range(50):
            instance.times.observe(1, 10.0)  # it has been slow lately
        answer = await ask(batcher, pictures(1), deadline=now() + 0.012)
        assert answer.batch == 1

    run(scenario())


# Clients that leave


def test_who_leaves_takes_the_work_along() -> None:
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
        await batcher.empty()

    run(scenario())


# Failures


def test_an_instance_that_fails_is_taken_out_and_its_images_run_elsewhere() -> None:
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


def test_without_an_instance_nobody_is_admitted() -> None:
    async def scenario() -> None:
        batcher = make_batcher(FakeInstance(fails=1), on_failure=lambda instance, error: None)
        waiting = asyncio.ensure_future(ask(batcher, pictures(1), deadline=5.0))
        await asyncio.sleep(1)
        with pytest.raises(Unavailable, match="not ready"):
            batcher.check(1)
        with pytest.raises(DeadlineExceeded):
            await waiting
        assert now() == pytest.approx(5)

    run(scenario())


def test_those_who_wait_can_be_sent_away() -> None:
    async def scenario() -> None:
        batcher = make_batcher(FakeInstance(fails=1), on_failure=lambda instance, error: None)
        waiting = asyncio.ensure_future(ask(batcher, pictures(1)))
        await asyncio.sleep(1)
        batcher.give_up("the model failed")
        with pytest.raises(Unavailable, match="the model failed"):
            await waiting
        assert batcher.depth == 0

    run(scenario())


def test_a_request_that_fails_twice_is_not_tried_again() -> None:
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


def test_a_detached_instance_finishes_what_it_runs() -> None:
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


# Everything at once


@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(1, 12), st.integers(1, 60), st.booleans()),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 3),
)
def test_every_request_ends_and_nothing_is_left(
    requests: list[tuple[int, int, int, bool]], instances: int
) -> None:
    async def client(batcher: Batcher, request: tuple[int, int, int, bool], first: int) -> None:
        start, count, patience, leaves = request
        await asyncio.sleep(start / 1000)
        asked = asyncio.ensure_future(
            ask(batcher, pictures(count, first), deadline=now() + patience / 1000)
        )
        if leaves:
            await asyncio.sleep(patience / 2000)
            asked.cancel()
        try:
            answer = await asked
        except (RequestError, asyncio.CancelledError):
            return
        assert answer.logits[:, 0].tolist() == [(first + i) % 256 for i in range(count)]

    async def scenario() -> None:
        seen: list[int] = []
        engines = [FakeInstance() for _ in range(instances)]
        batcher = make_batcher(
            *engines,
            queue=16,
            max_batch=8,
            max_wait=0.05,
            observe=lambda record: seen.append(record.images),
        )
        clients = [client(batcher, request, 7 * i) for i, request in enumerate(requests)]
        await asyncio.gather(*clients)
        await batcher.empty()
        assert batcher.depth == 0
        assert all(size <= 8 for size in seen)
        batcher.check(16)  # all of the queue is free again

    run(scenario())
