"""Measured inference times, their interpolation, and their correction while serving."""

from __future__ import annotations

import numpy as np
import pytest

from resdeploy.bundle.golden import Float32Array
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.serving.batching import service_times
from resdeploy.runtime.serving.batching.service_times import (
    MAX_SLOWDOWN,
    ServiceTimes,
    measure_service_times,
)
from tests.virtual_time import Clock

IMAGES = np.zeros((3, 2, 2, 3), np.uint8)


def test_times_between_measurements_are_interpolated() -> None:
    times = ServiceTimes({1: 0.010, 4: 0.016, 8: 0.020})
    assert times.measured(1) == 0.010
    assert times.measured(2) == pytest.approx(0.012)
    assert times.measured(6) == pytest.approx(0.018)
    assert times.measured(16) == pytest.approx(0.040)
    assert ServiceTimes({4: 0.4}).measured(1) == 0.4


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 0.01, 2: 0.02, 4: 0.04}, 1),  # larger batches have the same throughput
        ({1: 0.01, 2: 0.0199, 4: 0.0397}, 1),  # the gain is below 5 %
        ({1: 0.01, 2: 0.012, 4: 0.016, 8: 0.031}, 4),
        ({1: 0.0001, 2: 0.0002, 4: 0.0004, 8: 0.0008}, 8),  # the handover dominates
    ],
)
def test_the_best_batch_is_the_smallest_with_nearly_full_throughput(
    seconds: dict[int, float], best: int
) -> None:
    assert ServiceTimes(seconds).best_batch == best


def test_the_slowdown_rises_and_falls() -> None:
    times = ServiceTimes({1: 0.01})
    for _ in range(40):
        times.observe(1, 0.03)
    assert times.expected(1) == pytest.approx(0.03, rel=0.01)
    assert times.measured(1) == 0.01
    for _ in range(40):
        times.observe(1, 0.01)
    assert times.expected(1) == pytest.approx(0.01, rel=0.01)


def test_a_single_stall_has_limited_effect() -> None:
    times = ServiceTimes({1: 0.01})
    times.observe(1, 3600.0)
    assert times.expected(1) < 0.01 * MAX_SLOWDOWN


class Counting:
    """A backend that takes a fixed time per run and per image, on a virtual clock."""

    name = "counting"

    def __init__(self, clock: Clock, run_seconds: float, image_seconds: float) -> None:
        self.clock, self.run_seconds, self.image_seconds = clock, run_seconds, image_seconds
        self.sizes: list[int] = []

    def run(self, images: UInt8Array) -> Float32Array:
        self.sizes.append(len(images))
        self.clock.sleep(self.run_seconds + self.image_seconds * len(images))
        return np.zeros((len(images), 1), np.float32)

    def close(self) -> None: ...


def test_larger_sizes_are_measured_while_throughput_rises(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(service_times, "time", clock)
    gaining = Counting(clock, 0.02, 0.0)
    assert measure_service_times(gaining, IMAGES, 6).best_batch == 6
    assert sorted(set(gaining.sizes)) == [1, 2, 4, 6]
    flat = Counting(clock, 0.0, 0.01)
    assert measure_service_times(flat, IMAGES, 64).best_batch == 1
    assert max(flat.sizes) == 4  # stops soon after throughput stagnates
    assert measure_service_times(Counting(clock, 0.0, 0.001), IMAGES, 1).best_batch == 1
    times = measure_service_times(gaining, IMAGES, 6)
    second = Counting(clock, 9.0, 9.0)
    known = measure_service_times(second, IMAGES, 6, times, warm_up=1)
    assert second.sizes == [1, 2, 4, 6]  # it is only warmed up
    assert known.measured(6) == times.measured(6)
    known.observe(6, 1.0)
    assert times.expected(6) == times.measured(6)  # each instance has its own slowdown
