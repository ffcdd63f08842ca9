"""A served model: failed engines are replaced, changed bundles are reloaded, no request is lost."""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.errors import BackendError, BundleError
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.backends import registry
from resdeploy.runtime.serving import served_model
from resdeploy.runtime.serving.batching.interface import Answer
from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.runtime.serving.engine_instances import (
    EngineFactory,
    EngineInstance,
    divide_cores,
    run_batch,
)
from resdeploy.runtime.serving.loading_process import LoadingResult
from resdeploy.runtime.serving.request_errors import NoAnswer, RequestError, Unavailable
from resdeploy.runtime.serving.served_model import ServedModel
from tests.fakes import GoldenBackend, make_engine
from tests.runtime.serving.conftest import until
from tests.serving_process import PATIENCE


def run(work: Coroutine[Any, Any, Any]) -> None:
    asyncio.run(asyncio.wait_for(work, PATIENCE))


@pytest.fixture(autouse=True)
def _quick_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_model, "RECOVERY_SECONDS", 0.05)


class EnginePair:
    """The engines `first` and `second`, with every backend that they opened."""

    def __init__(self) -> None:
        self.opened: dict[str, list[GoldenBackend]] = {"first": [], "second": []}

    def registered(self) -> tuple[registry.Engine, ...]:
        return tuple(
            make_engine(name, ("fp32",), opened=backends.append)
            for name, backends in self.opened.items()
        )

    def last(self, name: str) -> GoldenBackend:
        return self.opened[name][-1]


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> EnginePair:
    engines = EnginePair()
    monkeypatch.setattr(registry, "ENGINES", engines.registered())
    return engines


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle.path, tmp_path / "tiny.bundle")


def make_model(path: Path, **settings: Any) -> ServedModel:
    return ServedModel("tiny", path, ServeConfig(**settings))


async def ask(model: ServedModel, count: int = 1, deadline: float = math.inf) -> Answer:
    loaded = model.loaded_bundle()
    images = loaded.bundle.golden().images[:count]
    with loaded.batcher.admit(count, deadline) as infer:
        answer = await infer(images)
    expected = loaded.bundle.golden().logits[:count]
    np.testing.assert_allclose(answer.logits, expected, rtol=1e-6)
    return answer


def test_a_model_is_ready_after_verification(engines: EnginePair, copy: Path) -> None:
    async def scenario() -> None:
        model = make_model(copy)
        assert not model.ready
        with pytest.raises(Unavailable, match="it is being loaded; try again in a few seconds"):
            model.loaded_bundle()
        assert await model.load()
        assert model.ready
        assert (await ask(model)).backend == "first"
        assert engines.opened["second"] == []
        await model.close()
        assert engines.last("first").closed

    run(scenario())


def test_an_engine_that_does_not_verify_never_serves(monkeypatch: Any, tiny_bundle: Bundle) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(registry, "ENGINES", (make_engine("wrong", factor=-1.0),))
        model = make_model(tiny_bundle.path)
        with pytest.raises(BackendError, match="no backend reproduces the golden logits"):
            await model.load()
        assert not model.ready

    run(scenario())


def test_a_missing_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        run(ServedModel("x", tmp_path / "x.bundle", ServeConfig()).load())


@pytest.mark.parametrize("instances", [1, 3])
def test_the_next_engine_replaces_a_failed_one_without_losing_requests(
    engines: EnginePair, copy: Path, instances: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        model = make_model(copy, instances=instances)
        await model.load()
        assert len(engines.opened["first"]) == instances
        engines.opened["first"][0].broken = True
        answers = await asyncio.gather(*(ask(model, 2) for _ in range(8)))
        assert {answer.backend for answer in answers} >= {"second"}
        assert model.ready
        assert model.active_instance is not None
        assert model.active_instance.backend == "second"
        await until(lambda: all(backend.closed for backend in engines.opened["first"]))
        assert len(engines.opened["second"]) == instances
        await model.close()

    with caplog.at_level(logging.WARNING, "resdeploy"):
        run(scenario())
    assert "first failed with fp32: it broke" in caplog.text


def test_a_model_without_engines_is_not_ready_and_recovers(
    monkeypatch: pytest.MonkeyPatch, copy: Path
) -> None:
    backends: list[GoldenBackend] = []
    monkeypatch.setattr(registry, "ENGINES", (make_engine(opened=backends.append),))

    async def scenario() -> None:
        model = make_model(copy)
        await model.load()
        broken = threading.Event()
        broken.set()
        monkeypatch.setattr(GoldenBackend, "is_broken", lambda self: broken.is_set())
        with pytest.raises(Unavailable, match="the model failed"):
            await ask(model)
        assert not model.ready
        with pytest.raises(Unavailable, match="not ready; try again in a few seconds"):
            await ask(model)
        await until(lambda: len(backends) >= 3)  # all candidates are retried periodically
        broken.clear()
        await until(lambda: model.ready)
        assert (await ask(model)).backend == "fake"
        await model.close()
        assert all(backend.closed for backend in backends)

    run(scenario())


def test_logits_that_are_not_finite_are_a_failure(engines: EnginePair, copy: Path) -> None:
    async def scenario() -> None:
        model = make_model(copy)
        await model.load()
        engines.last("first").factor = float("nan")
        assert (await ask(model)).backend == "second"
        await model.close()

    run(scenario())


@pytest.mark.parametrize("poison", ["throws", "nan"])
def test_an_image_without_an_answer_fails_its_request_and_not_the_engine(
    engines: EnginePair, copy: Path, monkeypatch: pytest.MonkeyPatch, poison: str
) -> None:
    """The fake engine knows only the golden images: others raise an error, or give NaN here."""
    run_known = GoldenBackend.run
    calls = 0
    golden: Any = None

    def run_any(self: GoldenBackend, images: UInt8Array) -> Float32Array:
        nonlocal calls
        calls += 1
        unknown = np.asarray(~images.any(axis=(1, 2, 3)))
        if poison == "throws" or not unknown.any():
            return run_known(self, images)
        known = images.copy()
        known[unknown] = golden.images[0]
        return np.where(unknown[:, None], np.float32(np.nan), run_known(self, known))

    async def scenario() -> None:
        nonlocal golden, calls
        model = make_model(copy, instances=1)
        await model.load()
        golden = model.loaded_bundle().bundle.golden()
        batcher = model.loaded_bundle().batcher

        async def ask_poison() -> None:
            with batcher.admit(1, math.inf) as infer, pytest.raises(NoAnswer):
                await infer(np.zeros_like(golden.images[:1]))

        monkeypatch.setattr(GoldenBackend, "run", run_any)
        for _ in range(3):
            await asyncio.gather(ask(model), ask_poison(), ask(model, 2), ask_poison())
        calls = 0
        await ask_poison()
        assert calls <= 2  # the golden check is not repeated for each poisoned request
        assert engines.opened["second"] == []
        assert not engines.last("first").closed
        await model.close()

    run(scenario())


# Reloading


class Check:
    """A check of changed bundles in this process; the engines of the tests are only here."""

    def __init__(self) -> None:
        self.passed = "first"
        self.then: Callable[[], object] = lambda: None

    async def __call__(self, path: Path, config: ServeConfig, current: str | None) -> LoadingResult:
        bundle = open_bundle(path)
        self.then()
        if bundle.digest == current:
            return LoadingResult()
        return LoadingResult(digest=bundle.digest, opened=(self.passed, "fp32", 1))


@pytest.fixture(autouse=True)
def check(monkeypatch: pytest.MonkeyPatch) -> Check:
    check = Check()
    monkeypatch.setattr(served_model, "check_loading", check)
    return check


def change(path: Path) -> None:
    """Change the manifest, as another export would."""
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")


def test_an_unchanged_bundle_is_not_reloaded(engines: EnginePair, copy: Path) -> None:
    async def scenario() -> None:
        model = make_model(copy)
        await model.load()
        assert not await model.load()
        assert len(engines.opened["first"]) == 1
        await model.close()

    run(scenario())


def test_a_changed_bundle_serves_while_the_old_one_finishes_its_requests(
    engines: EnginePair, copy: Path
) -> None:
    async def scenario() -> None:
        model = make_model(copy)
        await model.load()
        old = engines.last("first")
        old.hold.clear()
        waiting = [asyncio.ensure_future(ask(model)) for _ in range(3)]
        await until(lambda: old.held)
        before = model.loaded_bundle()
        change(copy)
        assert await model.load()
        assert model.loaded_bundle() is not before
        assert (await ask(model)).backend == "first"  # the new one answers
        assert not old.closed
        old.hold.set()
        await asyncio.gather(*waiting)
        await until(lambda: old.closed)
        assert not engines.last("first").closed
        await model.close()

    run(scenario())


def test_a_damaged_bundle_is_not_loaded(engines: EnginePair, copy: Path) -> None:
    async def scenario() -> None:
        model = make_model(copy)
        await model.load()
        before = model.loaded_bundle()
        (copy / "manifest.json").write_text("{}")
        with pytest.raises(BundleError):
            await model.load()
        (copy / "manifest.json").unlink()
        with pytest.raises(BundleError):
            await model.load()
        assert model.loaded_bundle() is before
        assert (await ask(model)).backend == "first"
        await model.close()

    run(scenario())


def test_a_bundle_that_changes_after_its_check_is_not_loaded(
    engines: EnginePair, copy: Path, check: Check
) -> None:
    async def scenario() -> None:
        model = make_model(copy)
        await model.load()
        change(copy)
        check.then = lambda: change(copy)
        with pytest.raises(BundleError, match="was changed while it was loaded"):
            await model.load()
        check.then = lambda: (copy / "labels.txt").write_text("others")
        with pytest.raises(BundleError, match="labels"):
            await model.load()
        assert len(engines.opened["first"]) == 1
        assert (await ask(model)).backend == "first"
        await model.close()

    run(scenario())


def test_only_the_engine_that_was_checked_is_opened(
    engines: EnginePair, copy: Path, check: Check
) -> None:
    async def scenario() -> None:
        model = make_model(copy)
        await model.load()
        change(copy)
        check.passed = "second"
        await model.load()
        assert len(engines.opened["first"]) == 1
        assert (await ask(model)).backend == "second"
        engines.last("second").broken = True
        assert (await ask(model)).backend == "first"  # after a failure, all are tried
        await model.close()

    run(scenario())


@pytest.mark.parametrize("damaged", [False, True])
def test_engines_that_nobody_waits_for_are_closed(
    engines: EnginePair, copy: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def open_late(*arguments: Any) -> EngineFactory:
        begun.set()
        assert go_on.wait(PATIENCE)
        return EngineFactory(*arguments)

    async def scenario() -> None:
        model = make_model(copy)
        await model.load()
        change(copy)
        if damaged:  # a file that the engine does not need
            (copy / "report.html").write_text("")
        monkeypatch.setattr(served_model, "EngineFactory", open_late)
        loading = asyncio.ensure_future(model.load())
        await until(begun.is_set)
        if not damaged:
            loading.cancel()
        with pytest.raises(BundleError if damaged else asyncio.CancelledError):
            await loading
        go_on.set()
        await until(lambda: len(engines.opened["first"]) == 2 and engines.last("first").closed)
        assert (await ask(model)).backend == "first"
        await model.close()

    run(scenario())


def test_a_first_load_and_a_recovery_that_hang_end(
    engines: EnginePair, copy: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    go_on, open_next = threading.Event(), EngineFactory.open_next

    def open_late(factory: EngineFactory) -> list[EngineInstance]:
        assert go_on.wait(PATIENCE)
        return open_next(factory)

    async def scenario() -> None:
        model = make_model(copy)
        with monkeypatch.context() as patch:
            patch.setattr(EngineFactory, "open_next", open_late)
            patch.setattr(served_model, "LOAD_SECONDS", 0.05)
            with pytest.raises(BackendError, match=r"not loaded within 0\.05 s"):
                await model.load()
        go_on.set()
        await until(lambda: engines.opened["first"] and engines.last("first").closed)
        await model.load()
        go_on.clear()
        monkeypatch.setattr(served_model, "LOAD_SECONDS", 0.05)
        monkeypatch.setattr(EngineFactory, "open_next", lambda self: go_on.wait(PATIENCE) and [])
        engines.last("first").broken = True
        with pytest.raises(Unavailable):
            await ask(model)
        assert "only a reload can help" in caplog.text
        assert not model.ready
        monkeypatch.setattr(served_model, "LOAD_SECONDS", PATIENCE)
        assert await model.load()
        go_on.set()
        assert (await ask(model)).backend == "first"
        await model.close()

    run(scenario())


def test_an_unchanged_bundle_is_reloaded_after_its_engine_failed(
    engines: EnginePair, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_model, "RECOVERY_SECONDS", 60)

    async def scenario() -> None:
        model = make_model(copy)
        await model.load()
        with monkeypatch.context() as patch:
            patch.setattr(GoldenBackend, "is_broken", lambda self: True)
            with pytest.raises(RequestError):
                await ask(model)
        assert not model.ready
        assert await model.load()
        assert (await ask(model)).backend == "first"
        await model.close()

    run(scenario())


def test_a_bundle_may_change_while_its_engine_fails(engines: EnginePair, copy: Path) -> None:
    async def scenario() -> None:
        model = make_model(copy)
        await model.load()
        old = engines.last("first")
        old.hold.clear()
        waiting = asyncio.ensure_future(ask(model))
        await until(lambda: old.held)
        change(copy)
        await model.load()
        old.broken = True
        old.hold.set()
        with pytest.raises(Unavailable):  # a replaced bundle is not recovered
            await waiting
        await until(lambda: old.closed)
        assert (await ask(model)).backend == "first"
        await model.close()

    run(scenario())


# Batches and instances


class Recording:
    name = "recording"

    def __init__(self, captured: frozenset[int]) -> None:
        self.captured = captured
        self.batches: list[UInt8Array] = []

    def run(self, images: UInt8Array) -> Float32Array:
        self.batches.append(images)
        return images[:, 0, 0].astype(np.float32)

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("sizes", "captured", "ran"),
    [
        ([3], (), 3),
        ([3], (1, 2, 4, 8), 4),
        ([4], (1, 2, 4, 8), 4),
        ([2, 3], (1, 2, 4, 8), 8),
        ([5, 6], (1, 2, 4, 8), 11),
    ],
)
def test_batches_are_padded_to_the_size_of_a_captured_graph(
    sizes: list[int], captured: tuple[int, ...], ran: int
) -> None:
    backend = Recording(frozenset(captured))
    parts = [
        np.full((size, 2, 2, 3), number, np.uint8) for number, size in enumerate(sizes, start=1)
    ]
    logits = run_batch(backend, parts)
    assert len(backend.batches[0]) == ran
    assert backend.batches[0].flags.c_contiguous
    expected = [number for number, size in enumerate(sizes, start=1) for _ in range(size)]
    assert logits[:, 0].tolist() == expected


def test_a_single_part_of_matching_size_is_not_copied() -> None:
    backend = Recording(frozenset())
    images = np.zeros((2, 2, 2, 3), np.uint8)
    run_batch(backend, [images])
    assert backend.batches[0] is images


@pytest.mark.parametrize(
    ("cores", "instances", "threads", "expected"),
    [
        (2, None, None, (2, 1)),
        (1, None, None, (1, 1)),
        (16, None, None, (4, 4)),
        (8, None, 4, (2, 4)),
        (2, None, 4, (1, 2)),
        (8, 1, None, (1, 8)),
        (2, 4, None, (2, 1)),
        (8, 3, 5, (1, 5)),
        (8, 4, 2, (4, 2)),
        (2, 3, 9, (1, 2)),
    ],
)
def test_cores_are_divided_among_instances(
    cores: int, instances: int | None, threads: int | None, expected: tuple[int, int]
) -> None:
    assert divide_cores(cores, instances, threads) == expected
