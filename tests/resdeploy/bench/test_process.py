"""A benchmark's child process and its owner."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from resdeploy.bench.process import Contender
from resdeploy.bench.worker import MIN_RUNS
from resdeploy.errors import BackendError


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules `python -m` finds."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def write(folder: Path, body: str) -> None:
    head = "import os, sys, time\nfrom resdeploy.bench.worker import run_worker\n"
    (folder / "racer.py").write_text(head + textwrap.dedent(body))


def test_a_contender_is_ready_runs_and_stops(child: Path) -> None:
    write(child, "run_worker(lambda: (lambda: time.sleep(0.002), {'argument': sys.argv[1]}))")
    contender = Contender.start("sleeper", "racer", ["hello"], threads=1)
    assert contender.facts == {"argument": "hello"}
    times = contender.run_for(0.02)
    assert len(times) >= MIN_RUNS
    assert (times >= 2.0).all()  # milliseconds, and sleep never ends early
    contender.stop()
    contender.stop()
    assert contender.process.poll() is not None


def test_even_no_time_gives_a_few_runs(child: Path) -> None:
    write(child, "run_worker(lambda: (lambda: None, {}))")
    contender = Contender.start("fast", "racer", [], threads=1)
    assert len(contender.run_for(0.0)) == MIN_RUNS
    contender.stop()


def test_what_libraries_print_does_not_disturb(child: Path) -> None:
    write(child, "run_worker(lambda: (lambda: print('noise'), {}))")
    contender = Contender.start("noisy", "racer", [], threads=1)
    assert len(contender.run_for(0.0)) == MIN_RUNS
    contender.stop()


def test_threads_are_limited(child: Path) -> None:
    write(child, "run_worker(lambda: (lambda: None, {'omp': os.environ['OMP_NUM_THREADS']}))")
    contender = Contender.start("limited", "racer", [], threads=3)
    assert contender.facts == {"omp": "3"}
    contender.stop()


def test_a_contenders_own_error_arrives(child: Path) -> None:
    body = """
    from resdeploy.errors import BundleError
    def prepare():
        raise BundleError("no graph", "export it")
    run_worker(prepare)
    """
    write(child, body)
    with pytest.raises(BackendError, match="no graph") as caught:
        Contender.start("broken", "racer", [], threads=1)
    assert caught.value.hint == "export it"


def test_an_early_end_is_explained(child: Path) -> None:
    write(child, "sys.exit(7)")
    with pytest.raises(BackendError, match="ended early with exit code 7"):
        Contender.start("gone", "racer", [], threads=1)


def test_a_crash_while_running_is_explained(child: Path) -> None:
    write(
        child,
        "runs = []\nrun_worker(lambda: (lambda: runs.append(1) or len(runs) > 2 and os._exit(9), {}))",
    )
    contender = Contender.start("fragile", "racer", [], threads=1)
    with pytest.raises(BackendError, match="exit code 9"):
        contender.run_for(0.1)
    contender.stop()


def test_a_child_ends_when_its_owner_is_gone(child: Path) -> None:
    write(child, "run_worker(lambda: (lambda: None, {}))")
    process = subprocess.run(
        [sys.executable, "-m", "racer"], stdin=subprocess.DEVNULL, capture_output=True, timeout=600,
        check=False,
    )  # fmt: skip
    assert process.returncode == 0


def test_who_is_not_ready_in_time_is_ended(child: Path) -> None:
    write(child, "time.sleep(60)")
    with pytest.raises(BackendError, match=r"compiler was not ready after 0.2 s") as caught:
        Contender.start("compiler", "racer", [], threads=1, limit_s=0.2)
    assert caught.value.hint == "leave it out: --without compiler"


def test_a_start_is_timed_and_memory_is_the_childs_own(child: Path) -> None:
    write(child, "time.sleep(0.2)\nrun_worker(lambda: (lambda: None, {}))")
    ballast = bytearray(400 << 20)
    ballast[:: 1 << 12] = b"1" * len(ballast[:: 1 << 12])  # every page is really there
    contender = Contender.start("small", "racer", [], threads=1)
    contender.run_for(0.0)
    contender.stop()
    assert contender.ready_s > 0.2
    assert contender.peak_rss_bytes is not None
    assert 5e6 < contender.peak_rss_bytes < 300e6


def test_times_of_stages_arrive_turn_by_turn(child: Path) -> None:
    body = """
    from resdeploy.bench.worker import StageTimes
    run_worker(lambda: (lambda: StageTimes(decode=2_000_000, post=500_000), {}))
    """
    write(child, body)
    contender = Contender.start("staged", "racer", [], threads=1)
    contender.run_for(0.0)
    contender.run_for(0.0)
    contender.stop()
    assert [list(times) for times in contender.stages["decode"]] == [[2.0] * MIN_RUNS] * 2
    assert contender.stages["post"][1][0] == 0.5
