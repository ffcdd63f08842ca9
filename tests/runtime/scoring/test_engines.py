"""Scoring with Ray: what it is asked for, and its errors; tests/journeys has a real cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.errors import BundleError, DataError, ResdeployError
from resdeploy.runtime.scoring.engines import RayOptions, score_with_ray
from resdeploy.runtime.scoring.score import ScoringOptions, score_sources
from tests.runtime.scoring.helpers import listed, result_rows

pytest.importorskip("pyarrow")


class RayError(Exception):
    """An error of Ray."""


@dataclass
class FakeRay:
    """Ray as far as it is used, with one actor in this process."""

    asked: dict[str, Any] = field(default_factory=dict)
    fails: str | None = None
    exceptions: Any = field(default_factory=lambda: SimpleNamespace(RayError=RayError))

    @property
    def data(self) -> Any:
        context = SimpleNamespace(enable_progress_bars=True)
        return SimpleNamespace(
            DataContext=SimpleNamespace(get_current=lambda: context),
            ActorPoolStrategy=lambda size: size,
            from_items=lambda items, **_: SimpleNamespace(
                map_batches=lambda kind, **asked: self._map(items, kind, asked)
            ),
        )

    def _map(self, items: list[dict[str, bytes]], kind: Any, asked: dict[str, Any]) -> Any:
        self.asked = asked
        actor = kind(*asked["fn_constructor_args"])

        def rows() -> Iterator[dict[str, bytes]]:
            for item in reversed(items):  # in any order
                found = actor({"part": [item["part"]]})
                yield {name: values[0] for name, values in found.items()}
            if self.fails is not None:
                raise RayError(self.fails)

        return SimpleNamespace(iter_rows=rows)

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 7.0}


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    for name in ("resdeploy.runtime.scoring.engines", "resdeploy.runtime.scoring.score"):
        monkeypatch.setattr(f"{name}.import_ray", lambda: fake)
    return fake


def test_parts_in_another_order_have_the_same_result(
    ray: FakeRay, tiny_bundle: Bundle, photos: Path, colours: None
) -> None:
    local = score_sources(tiny_bundle.path, ["photos"], "local", ScoringOptions(shard=5))
    job = ScoringOptions(shard=5, ray=RayOptions(worker_cpus=3))
    report = score_sources(tiny_bundle.path, ["photos"], "ray", job)
    assert result_rows(Path("ray")) == result_rows(Path("local"))
    assert (report.accuracy, report.parts) == (local.accuracy, 5)
    assert {n: ray.asked[n] for n in ("compute", "batch_size", "num_cpus", "num_gpus")} == {
        "compute": 2, "batch_size": 1, "num_cpus": 3, "num_gpus": None,
    }  # fmt: skip
    score_sources(tiny_bundle.path, ["photos"], "many", ScoringOptions(ray=RayOptions(workers=9)))
    assert ray.asked["compute"] == 1  # there is only one part


@dataclass
class Failing:
    """A writer of parts that fails."""

    error: Exception

    def absolute(self) -> Failing:
        return self

    def __call__(self, part: object) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (BundleError("it is damaged", "copy it"), BundleError, "it is damaged"),
        (RuntimeError("boom\nmore"), DataError, "a worker has failed: RuntimeError: boom"),
        (MemoryError(), DataError, "a worker has failed: MemoryError: there is not enough memory"),
    ],
)
def test_an_error_of_a_worker_is_raised_here(
    error: Exception, kind: type[ResdeployError], message: str, ray: FakeRay, photos: Path
) -> None:
    score: Callable[..., Any] = score_with_ray
    with pytest.raises(kind) as raised:
        list(score(Failing(error), listed(photos)[0], lambda done: None, RayOptions()))
    assert str(raised.value) == message
    assert raised.value.hint


def test_an_error_of_ray_has_one_line(
    ray: FakeRay, tiny_bundle: Bundle, photos: Path, colours: None
) -> None:
    ray.fails = "Traceback:\n  File x\nActorDiedError: the actor died\n"
    job = ScoringOptions(shard=5, ray=RayOptions())
    with pytest.raises(DataError) as raised:
        score_sources(tiny_bundle.path, ["photos"], "out", job)
    assert str(raised.value) == "Ray has failed: ActorDiedError: the actor died"
    assert "--resume" in str(raised.value.hint)


def test_no_part_starts_no_cluster(ray: FakeRay) -> None:
    score: Callable[..., Any] = score_with_ray
    assert list(score(None, [], lambda done: None, RayOptions())) == []
    assert ray.asked == {}


def test_a_cluster_that_cannot_be_reached(
    ray: FakeRay, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("nobody answers\nat all")

    monkeypatch.setattr(FakeRay, "is_initialized", lambda self: False)
    monkeypatch.setattr(FakeRay, "init", staticmethod(refuse), raising=False)
    score: Callable[..., Any] = score_with_ray
    with pytest.raises(DataError) as raised:
        job = RayOptions(address="10.0.0.1:6379")
        list(score(Failing(ValueError()), listed(photos)[0], lambda done: None, job))
    assert str(raised.value) == "no cluster of Ray can be reached: nobody answers"
    assert "--ray-address" in str(raised.value.hint)
