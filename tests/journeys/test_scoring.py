"""Scorings by the command: with a real object store, on a cluster of Ray, and killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from resdeploy.bundle.bundle import Bundle
from tests.results import read_document
from tests.samples import write_images
from tests.serving_process import PATIENCE

parquet = pytest.importorskip("pyarrow.parquet")
pytestmark = pytest.mark.slow

PROGRAM = (sys.executable, "-c", "from resdeploy.cli import main; main(prog_name='resdeploy')")
ENGINE = ("--backend", "onnxruntime-cpu")
ROWS = 1500
KILLS = 10


def start(*arguments: object, **settings: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PROGRAM, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, **settings,
    )  # fmt: skip


def document(*arguments: object) -> Any:
    process = start(*arguments, "--json")
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    return read_document(output)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a table that names 30 pictures many times each."""
    folder = tmp_path_factory.mktemp("archive")
    write_images(folder / "photos", 10, seed=3)
    names = sorted(str(path) for path in folder.rglob("*.png"))
    lines = "".join(f"{names[n % len(names)]}\n" for n in range(ROWS))
    (folder / "names.csv").write_text(f"path\n{lines}")
    return folder / "names.csv"


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a result in the order of its files."""
    return [
        row
        for path in sorted(folder.glob("part-*.parquet"))
        for row in parquet.read_table(path).to_pylist()
    ]


def sorted_table(folder: Path) -> Any:
    """Return the table of a result, sorted by path."""
    return parquet.read_table(folder).sort_by("path")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def object_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Start moto's server, which is an S3 server, and return a file system of fsspec in it."""
    pytest.importorskip("moto")
    s3fs = pytest.importorskip("s3fs")
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    address = f"http://127.0.0.1:{port}"
    settings = {
        "AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "name", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with (tmp_path / "moto.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                assert server.poll() is None
                time.sleep(0.1)
        store = s3fs.S3FileSystem(endpoint_url=address, key="name", secret="secret")
        store.mkdir("bucket")
        yield store
    finally:
        server.terminate()
        server.wait()


def test_source_and_result_in_an_object_store(
    tiny_bundle: Bundle, object_store: Any, tmp_path: Path
) -> None:
    write_images(tmp_path / "photos", 10, seed=3)
    object_store.put(str(tmp_path / "photos"), "bucket/photos", recursive=True)
    job = (tiny_bundle.path, "s3://bucket/photos", "-o", "s3://bucket/out", "--shard", 4, *ENGINE)
    assert len(object_store.find("bucket/photos")) == 30
    done = document("score", *job)
    assert (done["rows"], done["parts"], done["failed"]) == (30, 8, 0)
    assert done["accuracy"]["rows"] == 30

    local = (tiny_bundle.path, "photos", "-o", "local", "--shard", 4, *ENGINE)
    assert document("score", *local)["accuracy"] == done["accuracy"]
    object_store.get("bucket/out", str(tmp_path / "fetched"), recursive=True)
    fetched = rows(tmp_path / "fetched")
    assert [row["path"] for row in fetched] == [
        f"s3://bucket/{row['path']}" for row in rows(Path("local"))
    ]
    for row, other in zip(fetched, rows(Path("local"))):
        assert {**row, "path": ""} == {**other, "path": ""}

    object_store.rm("bucket/out/part-000003.parquet")
    object_store.rm("bucket/out/_journal/000005.json")
    assert document("score", *job, "--resume")["resumed_parts"] == 6
    object_store.invalidate_cache()
    shutil.rmtree("fetched")
    object_store.get("bucket/out", str(tmp_path / "fetched"), recursive=True)
    assert rows(tmp_path / "fetched") == fetched

    with object_store.open("bucket/photos/red/000.png", "wb") as stream:
        stream.write(b"other")
    process = start("score", *job, "--resume")
    errors = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 1
    assert "cannot be resumed: the sources have changed" in errors


def resume_until_complete(job: tuple[object, ...], folder: Path, archive: Path) -> None:
    """Resume a scoring, and check that each row of the table is in the result once."""
    assert document("score", *job, "--resume")["rows"] == ROWS
    names = archive.read_text().splitlines()[1:]
    assert [row["path"] for row in rows(folder)] == names


def wait_for_parts(folder: Path, process: subprocess.Popen[str], more_than: int = 0) -> None:
    """Wait until a scoring has written a file, or has ended."""
    deadline = time.monotonic() + PATIENCE
    while len(list(folder.glob("part-*"))) <= more_than and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_driver_that_is_killed_at_random_moments(tiny_bundle: Bundle, archive: Path) -> None:
    job, folder = (tiny_bundle.path, archive, "--shard", 10, *ENGINE), Path("killed")
    begin = time.monotonic()
    document("score", *job, "-o", "whole")
    seconds = time.monotonic() - begin
    generator, counts = random.Random(0), [0]
    for number in range(KILLS):
        process = start("score", *job, "-o", folder, "--resume")
        if number % 2:  # while it scores; the others at any moment from the start of Python
            wait_for_parts(folder, process, counts[-1])
        time.sleep(seconds * generator.uniform(0, 0.05 if number % 2 else 0.8))
        process.kill()
        process.communicate()
        counts.append(len(list(folder.glob("part-*"))))
    assert counts == sorted(counts)  # no complete file is lost
    assert len(set(counts)) > 3
    resume_until_complete((*job, "-o", folder), folder, archive)
    assert sorted_table(folder).equals(sorted_table(Path("whole")))
    assert not list(folder.rglob(".*"))


def cluster_processes(driver: int, title: str = "") -> list[int]:
    """Return the processes below a driver whose title contains a text."""
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            titles[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:
            continue
        parents[int(folder.name)] = int(stat[1])
    found = []
    for process in parents:
        above = process
        while above > 1 and above != driver:
            above = parents.get(above, 0)
        if above == driver != process and title in titles[process]:
            found.append(process)
    return found


def test_a_cluster_has_the_same_result_also_after_kills(tiny_bundle: Bundle, archive: Path) -> None:
    pytest.importorskip("ray")
    job = (tiny_bundle.path, archive, "--shard", 50, *ENGINE)
    document("score", *job, "-o", "local")
    ray = (*job, "--engine", "ray", "--workers", 2)

    process = start("score", *ray, "-o", "worker", "--json")
    wait_for_parts(Path("worker"), process)
    actors = cluster_processes(process.pid, "ray::MapWorker")
    assert actors
    os.kill(actors[0], signal.SIGKILL)
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors  # Ray gives its part to another worker
    assert read_document(output)["rows"] == ROWS
    assert sorted_table(Path("worker")).equals(sorted_table(Path("local")))

    process = start("score", *ray, "-o", "driver", start_new_session=True)
    wait_for_parts(Path("driver"), process)
    cluster = cluster_processes(process.pid)
    process.kill()
    process.communicate()
    for orphan in cluster:  # Ray ends them, too, but not all at once
        with suppress(ProcessLookupError):
            os.kill(orphan, signal.SIGKILL)
    resume_until_complete((*ray, "-o", "driver"), Path("driver"), archive)
    assert sorted_table(Path("driver")).equals(sorted_table(Path("local")))
