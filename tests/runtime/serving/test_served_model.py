"""A model in service: failing engines are replaced, changed bundles are taken, nobody is lost."""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.errors import BackendError, BundleError
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.backends import registry as selection
from resdeploy.runtime.serving import served_model
from resdeploy.runtime.serving.batching.instance import Answer
from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.runtime.serving.engine_instances import captured, run_parts, share_cores
from resdeploy.runtime.serving.request_errors import RequestError, Unavailable
from resdeploy.runtime.serving.served_model import ServedModel
from tests.fakes import GoldenBackend, make_engine
from tests.runtime.serving.conftest import until
from tests.serving_process import PATIENCE


def run(work: Coroutine[Any, Any, Any]) -> None:
    asyncio.run(asyncio.wait_for(work, PATIENCE))


@pytest.fixture(autouse=True)
def _quick_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_model, "RECOVERY_SECONDS", 0.05)


class Fleet:
    """Engines `first` and `second`; every backend that they opened."""

    def __init__(self) -> None:
        self.opened: dict[str, list[GoldenBackend]] = {"first": [], "second": []}

    def engines(self) -> tuple[selection.Engine, ...]:
        return tuple(
            make_engine(name, ("fp32",), opened=backends.append)
            for name, backends in self.opened.items()
        )

    def last(self, name: str) -> GoldenBackend:
        return self.opened[name][-1]


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    fleet = Fleet()
    monkeypatch.setattr(selection, "ENGINES", fleet.engines())
    return fleet


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle.path, tmp_path / "tiny.bundle")


def make_model(path: Path, **settings: Any) -> ServedModel:
    return ServedModel("tiny", path, ServeConfig(**settings))


async def ask(model: ServedModel, count: int = 1, deadline: float = math.inf) -> Answer:
    generation = model.generation()
    images = generation.bundle.golden().images[:count]
    with generation.batcher.admit(count, deadline) as place:
        answer = await place.run(images)
    expected = generation.bundle.golden().logits[:count]
    np.testing.assert_allclose(answer.logits, expected, rtol=1e-6)
    return answer


def test_it_is_ready_only_when_an_engine_is_verified(fleet: Fleet, copy: Path) -> None:
    async def scenario() -> None:
        model = make_model(copy)
        assert not model.ready
        with pytest.raises(Unavailable, match="not ready"):
            model.generation()
        assert await model.load()
        assert model.ready
        assert (await ask(model)).backend == "first"
        assert fleet.opened["second"] == []
        await model.close()
        assert fleet.last("first").closed

    run(scenario())


def test_what_does_not_verify_never_serves(monkeypatch: Any, tiny_bundle: Bundle) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(selection, "ENGINES", (make_engine("wrong", factor=-1.0),))
        model = make_model(tiny_bundle.path)
        with pytest.raises(BackendError, match="no backend gives PyTorch's answers"):
            await model.load()
        assert not model.ready

    run(scenario())


def test_a_missing_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        run(ServedModel("x", tmp_path / "x.bundle", ServeConfig()).load())


@pytest.mark.parametrize("instances", [1, 3])
def test_the_next_engine_takes_over_and_no_request_is_lost(
    fleet: Fleet, copy: Path, instances: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        model = make_model(copy, instances=instances)
        await model.load()
        assert len(fleet.opened["first"]) == instances
        fleet.opened["first"][0].broken = True
        answers = await asyncio.gather(*(ask(model, 2) for _ in range(8)))
        assert {answer.backend for answer in answers} >= {"second"}
        assert model.ready
        assert model.serving is not None
        assert model.serving.backend == "second"
        await until(lambda: all(backend.closed for backend in fleet.opened["first"]))
        assert len(fleet.opened["second"]) == instances
        await model.close()

    with caplog.at_level(logging.WARNING, "resdeploy"):
        run(scenario())
    assert "first failed with fp32: it broke" in caplog.text


def test_while_no_engine_works_it_is_not_ready_and_then_recovers(
    monkeypatch: pytest.MonkeyPatch, copy: Path
) -> None:
    backends: list[GoldenBackend] = []
    monkeypatch.setattr(selection, "ENGINES", (make_engine(opened=backends.append),))

    async def scenario() -> None:
        model = make_model(copy)
        await model.load()
        broken = threading.Event()
        broken.set()
        monkeypatch.setattr(GoldenBackend, "is_broken", lambda self: broken.is_set())
        with pytest.raises(Unavailable, match="the model failed"):
            await ask(model)
        assert not model.ready
        with pytest.raises(Unavailable, match="not ready"):
            await ask(model)
        await until(lambda: len(backends) >= 3)  # it is tried again and again
        broken.clear()
        await until(lambda: model.ready)
        assert (await ask(model)).backend == "fake"
        await model.close()
        assert all(backend.closed for backend in backends)

    run(scenario())


def test_logits_that_are_no_numbers_are_a_failure(fleet: Fleet, copy: Path) -> None:
    async def scenario() -> None:
        model = make_model(copy)
        await model.load()
        fleet.last("first").factor = float("nan")
        assert (await ask(model)).backend == "second"
        await model.close()

    run(scenario())


# Reloading


def change(path: Path) -> None:
    """Another manifest, as another export would write."""
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")


def test_an_unchanged_bundle_is_left_alone(fleet: Fleet, copy: Path) -> None:
    async def scenario() -> None:
        model = make_model(copy)
        await model.load()
        assert not await model.load()
        assert len(fleet.opened["first"]) == 1
        await model.close()

    run(scenario())


def test_a_changed_bundle_takes_over_and_the_old_one_finishes_its_requests(
    fleet: Fleet, copy: Path
) -> None:
    async def scenario() -> None:
        model = make_model(copy)
        await model.load()
        old = fleet.last("first")
        old.hold.clear()
        waiting = [asyncio.ensure_future(ask(model)) for _ in range(3)]
        await until(lambda: old.held)
        before = model.generation()
        change(copy)
        assert await model.load()
        assert model.generation() is not before
        assert (await ask(model)).backend == "first"  # the new one answers already
        assert not old.closed
        old.hold.set()
        await asyncio.gather(*waiting)
        await until(lambda: old.closed)
        assert not fleet.last("first").closed
        await model.close()

    run(scenario())


def test_a_broken_bundle_is_not_taken(fleet: Fleet, copy: Path) -> None:
    async def scenario() -> None:
        model = make_model(copy)
        await model.load()
        before = model.generation()
        (copy / "manifest.json").write_text("{}")
        with pytest.raises(BundleError):
            await model.load()
        (copy / "manifest.json").unlink()
        with pytest.raises(BundleError):
            await model.load()
        assert model.generation() is before
        assert (await ask(model)).backend == "first"
        await model.close()

    run(scenario())


def test_a_bundle_whose_engine_failed_is_loaded_again_though_unchanged(
    fleet: Fleet, copy: Path, monkeypatch: pytest.MonkeyPatch
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


def test_a_bundle_that_changes_while_its_engine_fails(fleet: Fleet, copy: Path) -> None:
    async def scenario() -> None:
        model = make_model(copy)
        await model.load()
        old = fleet.last("first")
        old.hold.clear()
        waiting = asyncio.ensure_future(ask(model))
        await until(lambda: old.held)
        change(copy)
        await model.load()
        old.broken = True
        old.hold.set()
        with pytest.raises(Unavailable):  # nobody recovers what was replaced
            await waiting
        await until(lambda: old.closed)
        assert (await ask(model)).backend == "first"
        await model.close()

    run(scenario())


# Batches as engines like them


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
    ("sizes", "ready", "ran"),
    [
        ([3], (), 3),
        ([3], (1, 2, 4, 8), 4),
        ([4], (1, 2, 4, 8), 4),
        ([2, 3], (1, 2, 4, 8), 8),
        ([5, 6], (1, 2, 4, 8), 11),
    ],
)
def test_batches_are_filled_up_to_what_is_captured(
    sizes: list[int], ready: tuple[int, ...], ran: int
) -> None:
    backend = Recording(frozenset(ready))
    assert captured(backend) == set(ready)
    parts = [
        np.full((size, 2, 2, 3), number, np.uint8) for number, size in enumerate(sizes, start=1)
    ]
    logits = run_parts(backend, parts)
    assert len(backend.batches[0]) == ran
    assert backend.batches[0].flags.c_contiguous
    expected = [number for number, size in enumerate(sizes, start=1) for _ in range(size)]
    assert logits[:, 0].tolist() == expected


def test_one_part_of_the_right_size_is_not_copied() -> None:
    backend = Recording(frozenset())
    images = np.zeros((2, 2, 2, 3), np.uint8)
    run_parts(backend, [images])
    assert backend.batches[0] is images


@pytest.mark.parametrize(
    ("cores", "instances", "threads", "expected"),
    [
        (2, None, None, (2, 1)),
        (1, None, None, (1, 1)),
        (16, None, None, (4, 4)),
        (8, None, 4, (2, 4)),
        (2, None, 4, (1, 4)),
        (8, 1, None, (1, 8)),
        (2, 4, None, (4, 1)),
        (8, 3, 5, (3, 5)),
    ],
)
def test_cores_are_shared(
    cores: int, instances: int | None, threads: int | None, expected: tuple[int, int]
) -> None:
    assert share_cores(cores, instances, threads) == expected
