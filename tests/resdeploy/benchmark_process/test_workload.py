"""Tests of workloads with a network that only records its inputs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from resdeploy.benchmark_process.worker_loop import StageTimes
from resdeploy.benchmark_process.workload import (
    MAX_PICTURES,
    STAGES,
    Workload,
    read_pictures,
    write_pictures,
)
from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.errors import DataError
from resdeploy.images.loading import load_image
from resdeploy.images.preprocessing import UInt8Array


class Recorder:
    def __init__(self) -> None:
        self.inputs: list[UInt8Array] = []

    def __call__(self, images: UInt8Array) -> Float32Array:
        self.inputs.append(images)
        return np.zeros((len(images), 3), dtype=np.float32)


@pytest.mark.parametrize("pictures", [None, Path("/some/pictures")])
def test_arguments_restore_the_workload(pictures: Path | None) -> None:
    workload = Workload(bundle=Path("a.bundle"), batch=8, threads=2, pictures=pictures, streams=2)
    assert Workload.from_arguments(workload.to_arguments()) == workload


def test_calls_from_memory_use_the_golden_images(tiny_bundle: Bundle) -> None:
    infer = Recorder()
    workload = Workload(bundle=tiny_bundle.path, batch=40, threads=1)
    run = workload.make_call(tiny_bundle, tiny_bundle.golden().images, infer)
    run()
    golden = tiny_bundle.golden().images
    np.testing.assert_array_equal(infer.inputs[0], golden[np.arange(40) % len(golden)])


def test_calls_from_files_cycle_through_the_pictures_and_time_their_stages(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    write_pictures(tiny_bundle, tmp_path)
    count = len(tiny_bundle.golden().images)
    assert len(read_pictures(tmp_path)) == count
    infer = Recorder()
    workload = Workload(bundle=tiny_bundle.path, batch=count - 1, threads=1, pictures=tmp_path)
    run = workload.make_call(tiny_bundle, tiny_bundle.golden().images, infer)
    times = run()
    assert isinstance(times, StageTimes)
    assert tuple(times) == STAGES
    assert all(duration > 0 for duration in times.values())
    run()
    preprocessing = tiny_bundle.manifest.preprocessing
    expected = [load_image(path, preprocessing) for path in sorted(tmp_path.iterdir())]
    np.testing.assert_array_equal(infer.inputs[0], expected[:-1])
    np.testing.assert_array_equal(infer.inputs[1], [expected[-1], *expected[:-2]])


def test_reads_a_limited_number_of_pictures(tmp_path: Path) -> None:
    for number in range(MAX_PICTURES + 5):
        (tmp_path / f"{number:03d}.jpg").write_bytes(b"picture")
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / ".000.jpg").write_bytes(b"hidden")
    os.mkfifo(tmp_path / "999.jpg")  # opening it would wait for ever
    assert len(read_pictures(tmp_path)) == MAX_PICTURES


def test_rejects_a_folder_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        read_pictures(tmp_path)
