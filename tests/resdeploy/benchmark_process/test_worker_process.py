"""Tests of the worker processes of a benchmark and of their parent process."""

from __future__ import annotations

import subprocess
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

from resdeploy.benchmark_process.worker_loop import MIN_CALLS
from resdeploy.benchmark_process.worker_process import Contender, Worker
from resdeploy.errors import BackendError
from resdeploy.machine.python_process import python_command


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder whose modules the processes find."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


def write(folder: Path, body: str) -> None:
    head = "import os, sys, time\nfrom resdeploy.benchmark_process.worker_loop import run_worker\n"
    (folder / "child.py").write_text(head + textwrap.dedent(body))


@pytest.mark.parametrize("worker", list(Worker))
def test_every_worker_module_exists(worker: Worker) -> None:
    assert find_spec(worker.value) is not None


def test_a_contender_starts_runs_and_stops(child: Path) -> None:
    write(child, "run_worker(lambda: (lambda: time.sleep(0.002), {'argument': sys.argv[1]}))")
    contender = Contender.start("sleeper", "child", ["hello"], threads=1)
    assert contender.facts == {"argument": "hello"}
    times = contender.run_for(0.02)
    assert len(times) >= MIN_CALLS
    assert (times >= 2.0).all()  # milliseconds, and sleep never ends early
    contender.stop()
    contender.stop()
    assert contender.process.poll() is not None


def test_zero_seconds_give_the_least_number_of_calls(child: Path) -> None:
    write(child, "run_worker(lambda: (lambda: None, {}))")
    contender = Contender.start("fast", "child", [], threads=1)
    assert len(contender.run_for(0.0)) == MIN_CALLS
    contender.stop()


def test_printed_text_does_not_disturb_the_protocol(child: Path) -> None:
    write(child, "run_worker(lambda: (lambda: print('noise'), {}))")
    contender = Contender.start("noisy", "child", [], threads=1)
    assert len(contender.run_for(0.0)) == MIN_CALLS
    contender.stop()


def test_the_number_of_threads_is_limited(child: Path) -> None:
    write(child, "run_worker(lambda: (lambda: None, {'omp': os.environ['OMP_NUM_THREADS']}))")
    contender = Contender.start("limited", "child", [], threads=3)
    assert contender.facts == {"omp": "3"}
    contender.stop()


def test_the_error_of_the_child_is_raised(child: Path) -> None:
    body = """
    from resdeploy.errors import BundleError
    def prepare():
        raise BundleError("no graph", "export it")
    run_worker(prepare)
    """
    write(child, body)
    with pytest.raises(BackendError, match="no graph") as caught:
        Contender.start("broken", "child", [], threads=1)
    assert caught.value.hint == "export it"


def test_reports_a_process_that_ends_before_it_is_ready(child: Path) -> None:
    write(child, "sys.exit(7)")
    with pytest.raises(BackendError, match="ended early with exit code 7"):
        Contender.start("gone", "child", [], threads=1)


def test_reports_a_process_that_ends_while_running(child: Path) -> None:
    call = "lambda: calls.append(1) or len(calls) > 2 and os._exit(9)"
    write(child, f"calls = []\nrun_worker(lambda: ({call}, {{}}))")
    contender = Contender.start("fragile", "child", [], threads=1)
    with pytest.raises(BackendError, match="exit code 9"):
        contender.run_for(0.1)
    contender.stop()


def test_a_killed_process_is_named_with_its_usual_cause(child: Path) -> None:
    write(child, "os.kill(os.getpid(), 9)")
    with pytest.raises(BackendError, match="ended early by the signal SIGKILL") as caught:
        Contender.start("large", "child", [], threads=1)
    assert "memory" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (
            "MemoryError('Unable to allocate 3 TiB')",
            "MemoryError: Unable to allocate 3 TiB",
            "batch",
        ),
        ("RuntimeError('CUDA out of memory. Tried')", "RuntimeError: CUDA out of", "smaller batch"),
        ("OSError(24, 'Too many open files')", "OSError: Too many open files", "ulimit -n"),
        ("ZeroDivisionError", "ZeroDivisionError: ZeroDivisionError", "read the traceback above"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_an_unexpected_error_of_the_child_keeps_its_reason(
    child: Path, error: str, message: str, hint: str, late: bool
) -> None:
    body = f"""
    calls = []
    def run():
        calls.append(1)
        if len(calls) > {3 * late}:
            raise {error}
    run_worker(lambda: (run, {{}}))
    """
    write(child, body)
    if not late:
        with pytest.raises(BackendError, match=message) as caught:
            Contender.start("broken", "child", [], threads=1)
    else:
        contender = Contender.start("broken", "child", [], threads=1)
        with pytest.raises(BackendError, match=message) as caught:
            contender.run_for(0.1)
        contender.stop()
    assert hint in str(caught.value.hint)


def test_a_child_ends_when_its_input_is_closed(child: Path) -> None:
    write(child, "run_worker(lambda: (lambda: None, {}))")
    subprocess.run(python_command("child"), stdin=subprocess.DEVNULL, timeout=600, check=True)


def test_stops_a_process_that_is_not_ready_in_time(child: Path) -> None:
    write(child, "time.sleep(60)")
    with pytest.raises(BackendError, match=r"compiler was not ready after 0.2 s") as caught:
        Contender.start("compiler", "child", [], threads=1, limit_s=0.2)
    assert caught.value.hint == "leave it out: --without compiler"


def test_measures_the_start_and_the_memory_of_the_child(child: Path) -> None:
    write(child, "time.sleep(0.2)\nrun_worker(lambda: (lambda: None, {}))")
    ballast = bytearray(400 << 20)
    ballast[:: 1 << 12] = b"1" * len(ballast[:: 1 << 12])  # touches every page
    contender = Contender.start("small", "child", [], threads=1)
    contender.run_for(0.0)
    contender.stop()
    assert contender.ready_s > 0.2
    assert contender.peak_rss_bytes is not None
    assert 5e6 < contender.peak_rss_bytes < 300e6


def test_stage_times_are_kept_by_turn(child: Path) -> None:
    body = """
    from resdeploy.benchmark_process.worker_loop import StageTimes
    run_worker(lambda: (lambda: StageTimes(decode=2_000_000, post=500_000), {}))
    """
    write(child, body)
    contender = Contender.start("staged", "child", [], threads=1)
    contender.run_for(0.0)
    contender.run_for(0.0)
    contender.stop()
    assert [list(times) for times in contender.stages["decode"]] == [[2.0] * MIN_CALLS] * 2
    assert contender.stages["post"][1][0] == 0.5
