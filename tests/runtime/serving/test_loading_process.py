"""The check of a changed bundle in a process: limits, crashes, and the end of the process."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.errors import BundleError
from resdeploy.runtime.serving import loading_process
from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.runtime.serving.loading_process import LoadingResult, check_loading
from tests.runtime.serving.conftest import until
from tests.serving_process import PATIENCE, is_running

# A process with an engine that has a fault when it is opened.
CHILD = """
import os, signal, sys, time
sys.path[:0] = {path!r}
from resdeploy.errors import BackendError
from resdeploy.runtime.backends import registry
from resdeploy.runtime.serving import loading_process
from tests.fakes import make_engine
loading_process.CPU_SECONDS = 1
loading_process.available_memory = lambda host: 256 << 20
kept = []
def fault(backend):
    {fault}
registry.ENGINES = (
    make_engine("broken", fails=True), make_engine("first", factor=-1.0),
    make_engine("second", opened=fault),
)
loading_process.main()
"""
CONFIG = ServeConfig(threads=1, instances=4)
Faulty = Callable[[str], None]


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Faulty:
    """Return a function that gives the engine of the process a fault."""
    monkeypatch.setattr(loading_process, "CPU_SECONDS", 1)

    def set_fault(fault: str) -> None:
        code = CHILD.format(path=sys.path, fault=fault)
        monkeypatch.setattr(
            loading_process, "python_command",
            lambda module, parent: (sys.executable, "-c", code, str(parent)),
        )  # fmt: skip

    return set_fault


def run(work: Coroutine[Any, Any, LoadingResult]) -> LoadingResult:
    return asyncio.run(asyncio.wait_for(work, PATIENCE))


def test_the_answer_names_what_passed(faulty: Faulty, tiny_bundle: Bundle) -> None:
    faulty("pass")
    result = run(check_loading(tiny_bundle.path, CONFIG, "another"))
    assert result == LoadingResult(digest=tiny_bundle.digest, opened=("second", "fp32", 4))


def test_an_unchanged_bundle_is_not_opened(tiny_bundle: Bundle) -> None:
    assert run(check_loading(tiny_bundle.path, CONFIG, tiny_bundle.digest)) == LoadingResult()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended with SIGSEGV"),
        ("os._exit(3)", "ended with exit code 3"),
        ("while True: pass", "SIGXCPU, after 1 s of processor time"),
        ("bytearray(10 << 30)", "takes more than 192 MiB of memory"),
        # Two instances would fit, but not four.
        (
            "kept.append(bytes([1]) * (80 << 20))",
            "takes more than 192 MiB of memory",
        ),
        ("raise BackendError('it broke', 'mend it')", "no backend reproduces"),
        ("raise RuntimeError(list(os.environ.keys() & loading_process.NOT_INHERITED))", r"^\[\]$"),
        # Standard streams, the answer, three of the event loop, the folder, and perhaps a file that
        # is checked meanwhile.
        ("raise RuntimeError(len(os.listdir('/proc/self/fd')))", "^[89]$"),
    ],
    ids=["crash", "exit", "loop", "memory", "instances", "engine", "secrets", "files"],
)
def test_a_fault_is_an_error_of_the_bundle(
    faulty: Faulty,
    tiny_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
    message: str,
) -> None:
    for name in loading_process.NOT_INHERITED:
        monkeypatch.setenv(name, "secret")
    faulty(fault)
    with (
        pytest.raises(BundleError, match=f"(?m){message}"),
        caplog.at_level(logging.WARNING, "resdeploy"),
    ):
        run(check_loading(tiny_bundle.path, CONFIG, None))
    # The log names the engines that failed before, unless the process was ended.
    ended = "ended with" in message or "SIGXCPU" in message
    assert ("broken cannot run fp32: it cannot be opened" in caplog.text) != ended


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("fifo", "it is not a regular file"),
        ("/dev/zero", "it is not a regular file"),
        ("/proc/self/mem", "Input/output error"),  # as from a disk
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused(
    tmp_path: Path, target: str, reason: str
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "manifest.json").symlink_to(target)
    with pytest.raises(BundleError, match=f"manifest.json cannot be read: {reason}"):
        run(check_loading(tmp_path, CONFIG, None))


def test_a_process_that_is_not_awaited_is_killed(
    faulty: Faulty, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    name = tmp_path / "pid"
    faulty(f"open({str(name)!r}, 'w').write(f'{{os.getpid()}}.'); time.sleep(600)")

    async def scenario() -> None:
        check = asyncio.ensure_future(check_loading(tiny_bundle.path, CONFIG, None))
        await until(lambda: name.exists() and name.read_text().endswith("."))
        check.cancel()
        await asyncio.wait([check])
        assert not is_running(name.read_text()[:-1])

    asyncio.run(scenario())


def test_a_process_ends_with_its_server(
    faulty: Faulty, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    name = tmp_path / "pid"
    faulty(f"open({str(name)!r}, 'w').write(f'{{os.getpid()}}.'); time.sleep(600)")
    command = loading_process.python_command("", 0)[:-1]  # type: ignore[attr-defined]
    server = (
        f"import asyncio, sys; sys.path[:0] = {sys.path!r}\n"
        "from pathlib import Path; from resdeploy.runtime.serving import loading_process\n"
        "from resdeploy.runtime.serving.config import ServeConfig\n"
        f"loading_process.python_command = lambda module, parent: {command!r} + (str(parent),)\n"
        f"path = Path({str(tiny_bundle.path)!r})\n"
        "asyncio.run(loading_process.check_loading(path, ServeConfig(), None))"
    )

    async def scenario() -> None:
        with subprocess.Popen([sys.executable, "-c", server]) as process:
            await until(lambda: name.exists() and name.read_text().endswith("."))
            process.kill()
        await until(lambda: not is_running(name.read_text()[:-1]))

    asyncio.run(scenario())
