"""The order of engines from measured times, a cache that can be wrong, old or missing, and the
measurement with processes that report invented times and a clock of its own.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from resdeploy.benchmark_process.worker_process import Contender
from resdeploy.bundle.bundle import Bundle
from resdeploy.cli.doctor import diagnosis_text
from resdeploy.errors import BackendError
from resdeploy.filesystem import write_file
from resdeploy.json_documents import to_text
from resdeploy.progress import silent
from resdeploy.runtime import load
from resdeploy.runtime.backends import engine_speeds, registry
from resdeploy.runtime.backends.base import OpenOptions
from resdeploy.runtime.backends.engine_speeds import (
    EngineSpeeds,
    SpeedKey,
    measure_speeds,
    read_speeds,
    sort_by_speed,
    speed_key,
)
from resdeploy.runtime.backends.registry import Engine, candidates
from resdeploy.runtime.diagnosis.doctor import diagnose
from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.runtime.serving.engine_instances import EngineFactory
from tests.fakes import make_engine

FIRST, SECOND = "onnxruntime-cpu", "other"


def cpu_engine(name: str, artifacts: tuple[str, ...] = ("int8-cpu", "fp32"), **how: Any) -> Engine:
    return dataclasses.replace(make_engine(name, artifacts, **how), on_cpu=True)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two engines for CPUs run the graphs `int8-cpu` and `fp32`."""
    monkeypatch.setattr(registry, "ENGINES", (cpu_engine(FIRST), cpu_engine(SECOND)))


def key_of(bundle: Bundle, threads: int | None = 1) -> SpeedKey:
    key = speed_key(candidates(bundle), threads)
    assert key is not None
    return key


def speeds_of(key: SpeedKey, first: Sequence[float], second: Sequence[float]) -> EngineSpeeds:
    return EngineSpeeds(key=key, round_ms={FIRST: tuple(first), SECOND: tuple(second)})


def store_speeds(speeds: EngineSpeeds) -> None:
    write_file(speeds.key.path, to_text(speeds).encode())


def fast_second(key: SpeedKey) -> EngineSpeeds:
    return speeds_of(key, [10.0] * 9, [5.0] * 9)


@pytest.mark.usefixtures("engines")
@pytest.mark.parametrize(
    ("first", "second", "chosen"),
    [
        pytest.param([10] * 9, [5] * 9, SECOND, id="faster"),
        pytest.param([10] * 9, [20] * 9, FIRST, id="slower"),
        pytest.param([10] * 9, [10] * 9, FIRST, id="equal"),
        pytest.param([10] * 9, [9.8] * 9, FIRST, id="gain-below-3-percent"),
        pytest.param([10] * 9, [9.6] * 9, SECOND, id="gain-above-3-percent"),
        pytest.param([10] * 9, [5] * 8 + [20], SECOND, id="lost-one-round-of-nine"),
        pytest.param([10] * 9, [5] * 7 + [20] * 2, FIRST, id="lost-two-rounds-of-nine"),
        pytest.param([10] * 5, [5] * 5, SECOND, id="five-rounds"),
        pytest.param([10] * 5, [5] * 4 + [20], FIRST, id="lost-one-round-of-five"),
        pytest.param([10] * 4, [5] * 4, FIRST, id="four-rounds-decide-nothing"),
    ],
)
def test_another_engine_must_be_faster_beyond_the_noise(
    tiny_bundle: Bundle, first: list[float], second: list[float], chosen: str
) -> None:
    speeds = speeds_of(key_of(tiny_bundle), first, second)
    assert speeds.fastest == chosen
    assert f"auto uses {chosen}" in str(speeds)
    assert ("not clearly slower" in str(speeds)) == (chosen == FIRST and sum(second) < sum(first))


@pytest.mark.usefixtures("engines")
def test_the_graph_that_was_measured_changes_its_order_alone(tiny_bundle: Bundle) -> None:
    pairs = [(FIRST, "int8-cpu"), (SECOND, "int8-cpu"), (FIRST, "fp32"), (SECOND, "fp32")]
    found = candidates(tiny_bundle)
    assert [(c.engine.name, c.artifact.name) for c in found] == pairs
    options = OpenOptions(threads=1)
    assert sort_by_speed(tiny_bundle, found, options) == found
    store_speeds(fast_second(key_of(tiny_bundle)))
    ordered = sort_by_speed(tiny_bundle, found, options)
    assert [(c.engine.name, c.artifact.name) for c in ordered] == [*pairs[1::-1], *pairs[2:]]


def test_there_is_a_choice_only_between_engines_for_cpus(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for engines in (
        (cpu_engine(FIRST),),
        (make_engine("gpu", ("fp32",)), cpu_engine(FIRST), cpu_engine(SECOND)),
        (cpu_engine(FIRST), cpu_engine(SECOND, ("fp32",))),
        (cpu_engine(FIRST), cpu_engine(SECOND, installed=False)),
    ):
        monkeypatch.setattr(registry, "ENGINES", engines)
        assert speed_key(candidates(tiny_bundle), None) is None


def opened_engines(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, factor: float = 1.0, **options: Any
) -> list[str]:
    """Load a bundle; return the engines that were opened, the last of which computes.

    The logits of the second engine are `factor` times the golden ones.
    """
    opened: list[str] = []
    engines = [
        cpu_engine(name, factor=how, opened=lambda _, name=name: opened.append(name))
        for name, how in ((FIRST, 1.0), (SECOND, factor))
    ]
    monkeypatch.setattr(registry, "ENGINES", tuple(engines))
    with load(bundle.path, threads=1, **options) as model:
        assert f"{bundle.path.name}: {model.artifact.name}.onnx on fake," in repr(model)
    return opened


@pytest.mark.usefixtures("engines")
def test_load_takes_the_engine_that_is_known_to_be_faster(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert opened_engines(monkeypatch, tiny_bundle) == [FIRST]
    assert not any(tmp_path.iterdir())  # loading measures nothing
    store_speeds(fast_second(key_of(tiny_bundle)))
    assert opened_engines(monkeypatch, tiny_bundle) == [SECOND]
    assert opened_engines(monkeypatch, tiny_bundle, backend=FIRST) == [FIRST]
    assert opened_engines(monkeypatch, tiny_bundle, precision="fp32") == [FIRST]  # not measured


@pytest.mark.usefixtures("engines")
def test_the_faster_engine_must_pass_the_golden_check(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store_speeds(fast_second(key_of(tiny_bundle)))
    with caplog.at_level(logging.WARNING, "resdeploy"):
        assert opened_engines(monkeypatch, tiny_bundle, factor=-1.0) == [SECOND, FIRST]
    assert "other does not reproduce PyTorch's logits with int8-cpu" in caplog.text


@pytest.mark.usefixtures("engines")
@pytest.mark.parametrize(
    "change",
    [
        {"graph_sha256": "0" * 64},
        {"engines": {FIRST: "1.0", SECOND: "1.1"}},
        {"engines": {FIRST: "1.0", "new": "1.0"}},
        {"processor": ("x86_64", "another one", "avx2")},
        {"cores": 1000},
        {"threads": 1000},
        {"revision": 0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_measurement_is_valid_for_its_own_key(
    tiny_bundle: Bundle, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    key = key_of(tiny_bundle)
    names = change.get("engines", key.engines)
    other = dataclasses.replace(key, **change)
    stored = EngineSpeeds(key=other, round_ms=dict.fromkeys(names, (1.0,)))
    store_speeds(stored)
    assert read_speeds(other) == stored
    assert read_speeds(key) is None
    other.path.rename(key.path)  # a file under a name that is not its own
    assert read_speeds(key) is None


def damaged(text: str) -> dict[str, bytes]:
    """Return contents that no measurement has, by a description."""

    def changed(**times: Any) -> bytes:
        return json.dumps({**json.loads(text), "round_ms": times}).encode()

    return {
        "empty": b"",
        "cut": text.encode()[:-20],
        "binary": bytes(range(256)),
        "list": b"[]",
        "deep": b"[" * 60_000,
        "large": text.encode() + b" " * (1 << 16),
        "huge": text.replace("5.0", "1" + "0" * 400).encode(),
        "infinite": text.replace("5.0", "1e999").encode(),
        "nan": text.replace("5.0", "NaN").encode(),
        "negative": changed(**{FIRST: [1], SECOND: [-1]}),
        "zero": changed(**{FIRST: [1], SECOND: [0]}),
        "text": changed(**{FIRST: [1], SECOND: ["0"]}),
        "no-rounds": changed(**{FIRST: [], SECOND: []}),
        "many-rounds": changed(**{FIRST: [1] * 5000, SECOND: [2] * 5000}),
        "unequal-rounds": changed(**{FIRST: [1, 2], SECOND: [1]}),
        "one-engine": changed(**{SECOND: [1]}),
        "another-order": changed(**{SECOND: [1], FIRST: [2]}),
        "foreign-engine": changed(**{FIRST: [2], "evil": [1]}),
    }


@pytest.mark.usefixtures("engines")
def test_damaged_and_foreign_files_are_no_measurement(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = key_of(tiny_bundle)
    store_speeds(fast_second(key))
    for name, content in damaged(key.path.read_text()).items():
        key.path.write_bytes(content)
        assert read_speeds(key) is None, name
    key.path.unlink()
    os.mkfifo(key.path)
    assert read_speeds(key) is None
    key.path.unlink()
    assert opened_engines(monkeypatch, tiny_bundle) == [FIRST]
    store_speeds(fast_second(key))
    assert opened_engines(monkeypatch, tiny_bundle) == [SECOND]


@pytest.mark.usefixtures("engines")
def test_a_cache_that_cannot_be_used_is_no_error(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    (tmp_path / "file").touch()
    key = key_of(tiny_bundle)
    for folder in (tmp_path / "file", Path("/proc/none")):
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
        assert read_speeds(key) is None
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert opened_engines(monkeypatch, tiny_bundle) == [FIRST]


def test_exact_opens_only_the_bits_of_the_export(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = registry.ENGINES
    with load(tiny_bundle.path, exact=True) as model:
        assert f"{tiny_bundle.path}: int8-cpu.onnx on onnxruntime-cpu," in repr(model)
    for precision in ("fp32", "fp16"):
        with pytest.raises(BackendError, match="gives the bits of the export") as caught:
            load(tiny_bundle.path, exact=True, precision=precision)
        assert "leave --backend and --precision out" in str(caught.value.hint)
    monkeypatch.setattr(registry, "ENGINES", (cpu_engine(SECOND), *real))
    store_speeds(
        EngineSpeeds(
            key=key_of(tiny_bundle, None), round_ms={SECOND: (1.0,) * 9, FIRST: (2.0,) * 9}
        )
    )
    with load(tiny_bundle.path, exact=True) as model:
        assert model.backend.name == FIRST
    monkeypatch.setattr(registry, "ENGINES", (cpu_engine(SECOND),))
    with pytest.raises(BackendError, match="gives the bits of the export"):
        load(tiny_bundle.path, exact=True)


MS = {"first": 10.0, "second": 4.0}


class FakeContender:
    """A process that needs `MS` per image, and ten times as long in its first turn."""

    now = 0.0
    started: Sequence[tuple[str, ...]] = ()
    running = 0
    broken = ""
    """Name of the engine that cannot start."""
    dies_in_turn = -1

    def __init__(self, name: str) -> None:
        self.name = name
        self.turns = 0
        FakeContender.running += 1

    @classmethod
    def start(
        cls, name: str, worker: str, arguments: tuple[str, ...], threads: int, limit: float,
        **options: Any,
    ) -> FakeContender:  # fmt: skip
        assert options == {"favoured": False}  # other work of this machine goes on
        if name == cls.broken:
            raise BackendError("its outputs differ", "repair it")
        cls.started = (*cls.started, (name, arguments[1], arguments[4], arguments[5]))
        return cls(name)

    def run_for(self, seconds: float) -> npt.NDArray[np.float64]:
        if self.turns == self.dies_in_turn:
            raise BackendError("it ended early", "read its message")
        factor = 1 if self.turns else 10
        self.turns += 1
        FakeContender.now += seconds
        return np.array([factor * MS[self.name]] * 3 + [1000.0])

    def stop(self) -> None:
        FakeContender.running -= 1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeContender]:
    """Use fake processes of two engines for CPUs."""
    fresh = {"now": 0.0, "started": (), "running": 0, "broken": "", "dies_in_turn": -1}
    for name, value in fresh.items():
        monkeypatch.setattr(FakeContender, name, value)
    monkeypatch.setattr(Contender, "start", FakeContender.start)
    engines = [dataclasses.replace(make_engine(name, ("int8-cpu",)), on_cpu=True) for name in MS]
    monkeypatch.setattr(registry, "ENGINES", tuple(engines))
    return FakeContender


@pytest.mark.parametrize(("slower", "rounds"), [(1.0, 9), (30.0, 5)])
def test_engines_take_turns_until_the_time_is_over(
    tiny_bundle: Bundle, fake: type[FakeContender], slower: float, rounds: int
) -> None:
    key = key_of(tiny_bundle, 3)
    speeds = measure_speeds(tiny_bundle, key, silent, lambda: slower * fake.now)
    assert speeds is not None
    assert speeds.round_ms == {name: (ms,) * rounds for name, ms in MS.items()}  # no warm-up
    assert read_speeds(key) == speeds
    assert fake.started == tuple((name, "int8-cpu", "1", "3") for name in MS)  # one image, threads
    assert fake.running == 0


@pytest.mark.parametrize("fault", [{"broken": "second"}, {"broken": "first"}, {"dies_in_turn": 3}])
def test_nothing_is_stored_if_an_engine_does_not_run(
    tiny_bundle: Bundle, fake: type[FakeContender], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, fault: dict[str, Any],
) -> None:  # fmt: skip
    for name, value in fault.items():
        monkeypatch.setattr(fake, name, value)
    key = key_of(tiny_bundle, 7)
    with caplog.at_level(logging.WARNING, "resdeploy"):
        assert measure_speeds(tiny_bundle, key, silent) is None
    assert "the engines first, second are not compared: it" in caplog.text
    assert fake.running == 0
    assert read_speeds(key) is None


def test_the_server_measures_once_before_it_opens_an_engine(
    tiny_bundle: Bundle, fake: type[FakeContender], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for backend, first in (("auto", "second"), ("auto", "second"), ("first", "first")):
        config = ServeConfig(backend=backend, instances=1, threads=3, max_batch=1)
        (instance,) = EngineFactory(tiny_bundle, config, silent).open_next()
        assert (instance.backend, instance.artifact) == (first, "int8-cpu")
    assert len(fake.started) == 2


def test_a_measurement_counts_if_the_cache_cannot_be_written(
    tiny_bundle: Bundle, fake: type[FakeContender], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    options = OpenOptions(measure=True)
    first, *_ = sort_by_speed(tiny_bundle, candidates(tiny_bundle), options)
    assert first.engine.name == "second"
    assert len(fake.started) == 2


def test_doctor_measures_again_and_shows_the_times(
    tiny_bundle: Bundle, fake: type[FakeContender]
) -> None:
    diagnose(tiny_bundle.path)
    found = diagnose(tiny_bundle.path)
    assert len(fake.started) == 4
    assert found.speeds is not None
    assert found.speeds == read_speeds(found.speeds.key)
    times = "first 10.00 ms, second 4.00 ms; auto uses second"
    assert f"{times}\n" in diagnosis_text(found)


@pytest.mark.usefixtures("engines")
def test_a_limit_of_instructions_is_part_of_the_key(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    key = key_of(tiny_bundle)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert key_of(tiny_bundle).path != key.path


def test_the_oldest_measurements_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_speeds, "MAX_FILES", 2)
    for age in (3, 1, 4, 2):
        path = tmp_path / f"{age}.json"
        path.write_bytes(b"")
        os.utime(path, (1000 - age, 1000 - age))
    engine_speeds._prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.json", "2.json"]
