"""Tests of the choice between one session and streams, with fake processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from resdeploy.benchmark_process.worker_process import Contender
from resdeploy.benchmark_process.workload import Workload
from resdeploy.bundle.bundle import Bundle
from resdeploy.errors import BackendError
from resdeploy.runtime.bench.contenders import ContenderSpec, backend_contenders
from resdeploy.runtime.bench.faster_streams import with_faster_streams


class FakeContender:
    """A process whose calls all take the same time."""

    def __init__(self, ms: float) -> None:
        self.ms = ms
        self.stopped = False

    def run_for(self, seconds: float) -> npt.NDArray[np.float64]:
        return np.full(3, self.ms)

    def stop(self) -> None:
        self.stopped = True


def choose(
    bundle: Bundle, ms: dict[int, float], batch: int, threads: int, precision: str = "int8"
) -> tuple[ContenderSpec, ContenderSpec, list[FakeContender]]:
    """Return a contender, its choice, and the processes; `ms` holds times by number of streams."""
    started: list[FakeContender] = []

    def start(name: str, worker: str, arguments: tuple[str, ...], *rest: Any) -> FakeContender:
        streams = Workload.from_arguments(arguments[2:]).streams
        if streams not in ms:
            raise BackendError("no memory")
        started.append(FakeContender(ms[streams]))
        return started[-1]

    workload = Workload(bundle=bundle.path, batch=batch, threads=threads)
    spec = {s.precision: s for s in backend_contenders(bundle, workload)}[precision]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Contender, "start", start)
        return spec, with_faster_streams(spec, bundle, workload), started


@pytest.mark.parametrize(
    ("batch", "threads", "streams"), [(8, 2, 2), (8, 16, 8), (6, 4, 2), (64, 8, 8)]
)
def test_the_faster_way_is_chosen_and_all_processes_are_stopped(
    tiny_bundle: Bundle, batch: int, threads: int, streams: int
) -> None:
    spec, chosen, started = choose(tiny_bundle, {1: 10.0, streams: 9.0}, batch, threads)
    assert chosen.streams == streams
    assert Workload.from_arguments(chosen.arguments[2:]).streams == streams
    assert (chosen.label, chosen.file_bytes) == (spec.label, spec.file_bytes)
    assert [fake.stopped for fake in started] == [True, True]
    spec, chosen, started = choose(tiny_bundle, {1: 9.0, streams: 10.0}, batch, threads)
    assert chosen == spec
    assert [fake.stopped for fake in started] == [True, True]


def test_streams_that_do_not_start_are_not_chosen(tiny_bundle: Bundle) -> None:
    spec, chosen, started = choose(tiny_bundle, {1: 10.0}, 8, 2)
    assert chosen == spec
    assert [fake.stopped for fake in started] == [True]


@pytest.mark.parametrize(
    ("batch", "threads", "precision"),
    [(8, 1, "int8"), (1, 4, "int8"), (8, 3, "int8"), (8, 2, "fp32")],
)
def test_nothing_is_tried_without_equal_parts_or_in_float(
    tiny_bundle: Bundle, batch: int, threads: int, precision: str
) -> None:
    spec, chosen, started = choose(tiny_bundle, {}, batch, threads, precision)
    assert (chosen, started) == (spec, [])
