"""Tests of the number of processes that decode images, and of their errors."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resdeploy.errors import TrainingError
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.train.data import dataset, workers
from resdeploy.train.data.dataset import BatchPlan, EpochImages, load_batches, read_splits
from resdeploy.train.data.workers import affordable_workers
from tests.forked import Forked
from tests.samples import SIZE

IMAGES = (64, 100)
BATCHES = 3 * 224**2 * sum(IMAGES) + 2 * 3 * 4096  # bytes of one batch of each kind


def run_python(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip


def set_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    usage = shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


def test_workers_are_limited_by_the_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    set_free(monkeypatch, 10 * BATCHES)
    assert affordable_workers(4, 224, IMAGES) == 4
    assert affordable_workers(0, 224, IMAGES) == 0
    with pytest.raises(
        TrainingError, match=r"has 247\.\d MB free, but 5 .* need 296\.\d"
    ) as caught:
        affordable_workers(5, 224, IMAGES)
    assert "use --workers 4, or enlarge /dev/shm, in Docker with --shm-size 283m" in str(
        caught.value.hint
    )
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # two training processes share the memory
    with pytest.raises(TrainingError, match="but 2 processes"):
        affordable_workers(2, 224, IMAGES)


def test_a_default_that_is_too_large_is_reduced_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_free(monkeypatch, 64 << 20)  # Docker's default
    monkeypatch.setattr(workers, "default_workers", lambda: 15)
    with caplog.at_level(logging.WARNING, "resdeploy"):
        assert affordable_workers(None, 224, IMAGES) == 0
        assert affordable_workers(None, 56, IMAGES) == 15
    assert "so resdeploy uses 0; to use all, enlarge /dev/shm" in caplog.text


def test_without_shared_memory_there_are_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SHARED_MEMORY", "/nowhere/shm")
    assert affordable_workers(0, 224, IMAGES) == 0
    with pytest.raises(TrainingError, match=r"/nowhere/shm has 0\.0 MB free"):
        affordable_workers(1, 224, IMAGES)


def test_shared_memory_that_runs_out_is_an_error(image_data: Path) -> None:
    """Check with a small real file system; PyTorch alone would wait for ever."""
    code = f"""
from pathlib import Path
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.train.data.dataset import *
images = EpochImages(read_splits(Path({str(image_data)!r})).train, Preprocessing.standard({SIZE}))
next(load_batches([images], BatchPlan(batch_size=60, shuffle=False, workers=1)))
"""
    mount = "mount -t tmpfs -o size=100k tmpfs /dev/shm"  # a batch has 180 kB
    command = f'{mount} && exec "{sys.executable}" -c "$0"'
    answer = run_python("unshare", "--map-root-user", "--mount", "sh", "-c", command, code)
    if "unshare" in answer.stderr or "mount:" in answer.stderr:
        pytest.skip("this machine does not allow to mount in a namespace")
    assert answer.returncode == 1
    assert "unable to allocate shared memory(shm)" in answer.stderr.strip().splitlines()[-1]


def test_storage_that_does_not_respond_is_an_error(
    image_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "SECONDS_PER_BATCH", 3)
    monkeypatch.setattr(dataset, "SECONDS_PER_CHECK", 1)
    monkeypatch.setattr(dataset, "load_image", lambda *_: time.sleep(60))
    images = EpochImages(read_splits(image_data).val, Preprocessing.standard(SIZE))
    batches = load_batches([images], BatchPlan(batch_size=8, shuffle=False, workers=1))
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="timed out after 1 seconds"):
        next(batches)
    assert time.monotonic() - start > 3


def test_a_killed_worker_of_any_loader_is_noticed(image_data: Path) -> None:
    code = f"""
import multiprocessing, signal
from pathlib import Path
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.train.data import dataset
dataset.SECONDS_PER_CHECK = 1
images = dataset.read_splits(Path({str(image_data)!r})).val
images = dataset.EpochImages(images, Preprocessing.standard({SIZE}))
plan = dataset.BatchPlan(batch_size=1, shuffle=False, workers=1)
first, second = (dataset.load_batches([images], plan) for _ in range(2))
next(first)
assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
for child in multiprocessing.active_children():
    child.kill()
    child.join()
for batches in (first, second):
    try:
        next(batches)
    except RuntimeError as error:
        print(error)
"""
    output, errors = Forked(code=code).communicate()
    assert output.count("is killed by signal: Killed.") == 2, errors


def test_workers_that_cannot_be_started_are_an_error(
    image_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused:
        def __iter__(self) -> None:
            raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(dataset, "DataLoader", lambda *_, **__: Refused())
    images = EpochImages(read_splits(image_data).val, Preprocessing.standard(SIZE))
    with pytest.raises(TrainingError, match=r"3 processes .* cannot be started: Resource temp"):
        load_batches([images], BatchPlan(batch_size=8, shuffle=False, workers=3))
