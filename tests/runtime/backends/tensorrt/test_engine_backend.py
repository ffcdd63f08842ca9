"""The logic of the backend on a fake GPU: buffers, splitting, CUDA graphs, errors.

The fakes work only when a stream is synchronised, so these tests detect results that are read too
early and buffers that are overwritten too soon. They do not show how a real GPU behaves.
"""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdeploy.errors import BackendError
from resdeploy.runtime.backends.base import Batches
from resdeploy.runtime.backends.tensorrt.engine_backend import MAX_GRAPHS, EngineBackend, split
from tests.fake_gpu import FakeCuda, FakeEngine, fake_tensorrt


def open_backend(engine: Any, cuda: FakeCuda, **options: Any) -> EngineBackend:
    create_context = engine.create_execution_context
    return EngineBackend(fake_tensorrt(), engine, create_context, cuda, name="tensorrt", **options)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)


def expected(images: np.ndarray) -> np.ndarray:
    """Return the sum and the first value of each image, as the fake computes them."""
    flat = images.reshape(len(images), -1)
    return np.stack([flat.sum(axis=1), flat[:, 0]], axis=1).astype(np.float32)


def test_reads_the_batches_of_the_engine() -> None:
    cuda = FakeCuda()
    backend = open_backend(FakeEngine(cuda, (1, 3, 6)), cuda)
    assert backend.batches == Batches(1, 3, 6)
    assert backend.name == "tensorrt"


@pytest.mark.parametrize("zero_copy", [False, True])
@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9, 16, 17])
def test_every_image_gets_its_own_logits(count: int, capture: bool, zero_copy: bool) -> None:
    cuda = FakeCuda()
    backend = open_backend(FakeEngine(cuda), cuda, zero_copy=zero_copy, capture=capture)
    for seed in range(4):  # the second run captures a graph, later ones use it
        images = pictures(count, seed)
        logits = backend.run(images)
        assert logits.dtype == np.float32
        np.testing.assert_array_equal(logits[:, :2], expected(images))
    backend.close()


@given(st.integers(1, 1000), st.integers(1, 64))
def test_split_covers_all_images_evenly(count: int, largest: int) -> None:
    parts = split(count, largest)
    assert [index for part in parts for index in range(count)[part]] == list(range(count))
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) <= largest
    assert len(parts) == -(-count // largest)
    assert len(set(lengths[:-1])) <= 1
    assert lengths[-1] <= lengths[0]


def test_large_batches_alternate_between_two_streams() -> None:
    cuda = FakeCuda()
    engine = FakeEngine(cuda)
    backend = open_backend(engine, cuda)
    assert cuda.calls.count("create_stream") == 1  # the second stream is created when needed
    backend.run(pictures(9))
    assert [context.shapes for context in engine.contexts] == [[3], [3]]
    # Two batches were queued before the first one was synchronised.
    order = [call for call in cuda.calls if call in ("copy_to_device", "synchronize")]
    assert order[:3] == ["copy_to_device", "copy_to_device", "synchronize"]


def test_fills_up_batches_below_the_minimum() -> None:
    cuda = FakeCuda()
    engine = FakeEngine(cuda, (3, 3, 4))
    backend = open_backend(engine, cuda)
    first, second = pictures(4, 1), pictures(1, 2)
    backend.run(first)
    logits = backend.run(second)
    np.testing.assert_array_equal(logits[:, :2], expected(second))
    assert logits[0, 2] == 3
    assert [context.shapes for context in engine.contexts] == [[4], [3]]


# CUDA graphs


def test_captures_a_batch_size_at_its_second_run() -> None:
    cuda = FakeCuda()
    backend = open_backend(FakeEngine(cuda), cuda)
    backend.run(pictures(2))
    assert backend.captured == frozenset()
    assert "begin_capture" not in cuda.calls
    backend.run(pictures(2))
    assert backend.captured == {2}
    before = cuda.calls.count("copy_to_device")
    backend.run(pictures(2))
    assert cuda.calls.count("launch") == 2
    assert cuda.calls.count("copy_to_device") == before  # the graph contains the copy
    assert cuda.calls.count("begin_capture") == 1


def test_each_captured_batch_size_has_its_own_context() -> None:
    """The fake rejects a graph whose context was set to another shape after the capture."""
    cuda = FakeCuda()
    engine = FakeEngine(cuda)
    backend = open_backend(engine, cuda)
    for count, seed in ((2, 0), (1, 1), (2, 2), (1, 3), (2, 4), (1, 5), (2, 6)):
        images = pictures(count, seed)
        np.testing.assert_array_equal(backend.run(images)[:, :2], expected(images))
    assert backend.captured == {1, 2}
    assert [context.shapes for context in engine.contexts] == [[2], [1]]


def test_contexts_of_a_stream_share_a_workspace() -> None:
    cuda = FakeCuda()
    engine = FakeEngine(cuda)
    backend = open_backend(engine, cuda, workspace=4096)
    for count in (1, 2, 3, 9):
        backend.run(pictures(count))
    memories = {context.memory for context in engine.contexts}
    assert len(memories) == 2  # one for each of the two streams
    assert all(memory is not None and memory[1] == 4096 for memory in memories)


def test_without_capture_there_is_one_context() -> None:
    cuda = FakeCuda()
    engine = FakeEngine(cuda)
    backend = open_backend(engine, cuda, capture=False)
    for count in (1, 1, 2, 2, 1):
        backend.run(pictures(count))
    assert [context.shapes for context in engine.contexts] == [[1, 2, 1]]
    assert engine.contexts[0].memory is None


def test_the_number_of_graphs_is_limited() -> None:
    cuda = FakeCuda()
    engine = FakeEngine(cuda, (1, 1, MAX_GRAPHS + 3))
    backend = open_backend(engine, cuda)
    for count in range(1, MAX_GRAPHS + 4):
        for seed in range(3):
            images = pictures(count, seed)
            np.testing.assert_array_equal(backend.run(images)[:, :2], expected(images))
    assert len(backend.captured) == MAX_GRAPHS
    assert len(engine.contexts) == MAX_GRAPHS + 1  # all further sizes share one context


@pytest.mark.parametrize("failing", ["begin_capture", "end_capture"])
def test_runs_without_graphs_if_capture_fails(failing: str) -> None:
    cuda = FakeCuda(failing)
    backend = open_backend(FakeEngine(cuda), cuda)
    for seed in range(4):
        images = pictures(2, seed)
        np.testing.assert_array_equal(backend.run(images)[:, :2], expected(images))
    assert backend.captured == frozenset()
    assert cuda.calls.count(failing) == 1


# Zero copy


def test_zero_copy_copies_nothing() -> None:
    cuda = FakeCuda()
    backend = open_backend(FakeEngine(cuda), cuda, zero_copy=True)
    backend.run(pictures(3))
    assert "malloc_mapped" in cuda.calls
    assert not {"malloc", "copy_to_device", "copy_to_host"} & set(cuda.calls)


# Errors and close


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 2, 2, 3), np.float32),
        np.zeros((1, 3, 2, 2), np.uint8),
        np.zeros((2, 2, 3), np.uint8),
        np.zeros((0, 2, 2, 3), np.uint8),
    ],
    ids=["float", "NCHW", "no batch", "empty"],
)
def test_rejects_arrays_of_other_dtype_or_shape(images: np.ndarray) -> None:
    cuda = FakeCuda()
    backend = open_backend(FakeEngine(cuda), cuda)
    with pytest.raises(BackendError, match="takes uint8"):
        backend.run(images)
    assert backend.run(pictures(1)).shape == (1, 3)


@pytest.mark.parametrize("fails", ["set_input_shape", "execute_async_v3"])
def test_error_has_the_reason_of_tensorrt(fails: str) -> None:
    cuda = FakeCuda()
    backend = open_backend(FakeEngine(cuda, fails=fails), cuda)
    with pytest.raises(BackendError, match="out of patience"):
        backend.run(pictures(1))


def test_refuses_to_run_after_a_failure() -> None:
    cuda = FakeCuda("synchronize", from_call=2)
    backend = open_backend(FakeEngine(cuda), cuda)
    backend.run(pictures(1))
    with pytest.raises(BackendError, match="CUDA failed in synchronize"):
        backend.run(pictures(1))
    cuda.failing = ""
    with pytest.raises(BackendError, match="failed earlier: CUDA failed in synchronize"):
        backend.run(pictures(1))
    backend.close()
    assert cuda.memory == {}


@pytest.mark.parametrize("failing", ["create_stream", "malloc_host", "malloc"])
@pytest.mark.parametrize("from_call", [1, 2])
def test_frees_everything_if_opening_fails(failing: str, from_call: int) -> None:
    cuda = FakeCuda(failing, from_call=from_call)
    engine = FakeEngine(cuda)
    if failing == "create_stream" and from_call == 2:
        backend = open_backend(engine, cuda)
        images = pictures(9)  # without a second stream, one batch runs after the other
        np.testing.assert_array_equal(backend.run(images)[:, :2], expected(images))
        backend.close()
    else:
        with pytest.raises(BackendError, match=failing):
            open_backend(engine, cuda)
    assert cuda.memory == {}
    assert cuda.streams == {}


def test_rejects_an_engine_without_a_context() -> None:
    cuda = FakeCuda()
    backend = open_backend(FakeEngine(cuda, fails="create_execution_context"), cuda)
    with pytest.raises(BackendError, match="cannot run the engine: out of patience") as caught:
        backend.run(pictures(1))
    assert "--batch" in str(caught.value.hint)


def test_rejects_an_engine_with_other_outputs() -> None:
    cuda = FakeCuda()
    with pytest.raises(BackendError, match="not images, boxes"):
        open_backend(FakeEngine(cuda, output="boxes"), cuda)


def test_close_frees_everything_once() -> None:
    cuda = FakeCuda()
    closed: list[str] = []
    backend = open_backend(FakeEngine(cuda), cuda, on_close=lambda: closed.append("saved"))
    for seed in range(3):
        backend.run(pictures(9, seed))
    assert cuda.graphs
    backend.close()
    backend.close()
    assert closed == ["saved"]
    assert (cuda.memory, cuda.streams, cuda.graphs) == ({}, {}, [])
    with pytest.raises(BackendError, match="was closed"):
        backend.run(pictures(1))


def test_close_synchronises_before_it_frees() -> None:
    cuda = FakeCuda("copy_to_host", from_call=3)
    backend = open_backend(FakeEngine(cuda), cuda)
    with pytest.raises(BackendError):
        backend.run(pictures(16))  # fails in the third of four batches, while the second runs
    cuda.failing = ""
    backend.close()
    releases = [index for index, call in enumerate(cuda.calls) if call.startswith(("free", "dest"))]
    assert cuda.calls[releases[0] - 1] == "synchronize"


def test_ctrl_c_ends_a_capture() -> None:
    cuda = FakeCuda()
    engine = FakeEngine(cuda)
    backend = open_backend(engine, cuda)
    backend.run(pictures(1))

    def interrupted(stream: int) -> bool:
        raise KeyboardInterrupt

    engine.contexts[0].execute_async_v3 = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        backend.run(pictures(1))
    assert not cuda.capturing
    with pytest.raises(BackendError, match="failed earlier: KeyboardInterrupt"):
        backend.run(pictures(1))


def test_close_drops_the_last_reference_to_the_engine() -> None:
    cuda = FakeCuda()
    engine = FakeEngine(cuda)
    reference = weakref.ref(engine)
    backend = open_backend(engine, cuda)
    backend.run(pictures(9))
    backend.close()
    del engine
    gc.collect()
    assert reference() is None


def test_run_is_thread_safe() -> None:
    cuda = FakeCuda()
    backend = open_backend(FakeEngine(cuda), cuda)
    wrong: list[int] = []

    def work(seed: int) -> None:
        for number in range(20):
            images = pictures(1 + (seed + number) % 7, seed * 100 + number)
            if not np.array_equal(backend.run(images)[:, :2], expected(images)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
