"""What contenders do, with a network that only remembers what it was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from resdeploy.bench.worker import StageTimes
from resdeploy.bench.workload import MOST_PICTURES, STAGES, Workload, read_pictures, write_pictures
from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.errors import DataError
from resdeploy.images.preprocessing import UInt8Array, load_image


class Recorder:
    def __init__(self) -> None:
        self.seen: list[UInt8Array] = []

    def __call__(self, images: UInt8Array) -> Float32Array:
        self.seen.append(images)
        return np.zeros((len(images), 3), dtype=np.float32)


@pytest.mark.parametrize("pictures", [None, Path("/some/pictures")])
def test_a_process_is_told_all_of_it(pictures: Path | None) -> None:
    workload = Workload(bundle=Path("a.bundle"), batch=8, threads=2, pictures=pictures)
    assert Workload.from_arguments(workload.to_arguments()) == workload


def test_from_memory_every_run_is_the_same_golden_images(tiny_bundle: Bundle) -> None:
    infer = Recorder()
    workload = Workload(bundle=tiny_bundle.path, batch=40, threads=1)
    run = workload.runner(tiny_bundle, tiny_bundle.golden().images, infer)
    run()
    golden = tiny_bundle.golden().images
    np.testing.assert_array_equal(infer.seen[0], golden[np.arange(40) % len(golden)])


def test_from_files_runs_go_round_the_pictures_and_time_their_parts(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    write_pictures(tiny_bundle, tmp_path)
    count = len(tiny_bundle.golden().images)
    assert len(read_pictures(tmp_path)) == count
    infer = Recorder()
    workload = Workload(bundle=tiny_bundle.path, batch=count - 1, threads=1, pictures=tmp_path)
    run = workload.runner(tiny_bundle, tiny_bundle.golden().images, infer)
    times = run()
    assert isinstance(times, StageTimes)
    assert tuple(times) == STAGES
    assert all(duration > 0 for duration in times.values())
    run()
    preprocessing = tiny_bundle.manifest.preprocessing
    expected = [load_image(path, preprocessing) for path in sorted(tmp_path.iterdir())]
    np.testing.assert_array_equal(infer.seen[0], expected[:-1])
    np.testing.assert_array_equal(infer.seen[1], [expected[-1], *expected[:-2]])


def test_no_more_pictures_than_fit_into_memory_are_read(tmp_path: Path) -> None:
    for number in range(MOST_PICTURES + 5):
        (tmp_path / f"{number:03d}.jpg").write_bytes(b"picture")
    (tmp_path / "notes.txt").write_text("none")
    assert len(read_pictures(tmp_path)) == MOST_PICTURES


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pictures"):
        read_pictures(tmp_path)
