"""The two ends of a benchmark: a process that runs one network when told to, and its owner.

One process per contender, because the thread pools of several frameworks in one process spin
against each other. They speak JSON lines: the child says it is ready, then answers each number of
seconds with the times of its runs. A waiting child costs nothing: it blocks on its input.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from resdeploy.errors import BackendError

HIGHEST_PRIORITY = -20
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
Rounds = list[npt.NDArray[np.float64]]
"""Times of single runs in milliseconds, one array a round."""


class Worker(str, Enum):
    """Modules that run as the child process of a benchmark.

    They are names, not imports: the runtime must not import what needs PyTorch.
    """

    PYTORCH = "resdeploy.train.bench.worker"
    PYTORCH_CEILINGS = "resdeploy.train.bench.ceilings"
    RUNTIME = "resdeploy.runtime.bench.worker"
    RUNTIME_CEILINGS = "resdeploy.runtime.bench.ceilings"


@dataclass(slots=True)
class Contender:
    """The owner's end: a running child, and what it said of itself."""

    name: str
    process: subprocess.Popen[str]
    facts: Mapping[str, Any] = field(default_factory=dict)
    ready_s: float = 0.0
    """From the start of the process to its first answer."""
    stages: dict[str, Rounds] = field(default_factory=dict)
    """Times of the parts of its runs, where it tells them."""
    peak_rss_bytes: int | None = None
    high_priority: bool = False
    """Whether it goes before all that others run here."""

    @classmethod
    def start(
        cls,
        name: str,
        worker: Worker | str,
        arguments: list[str],
        threads: int,
        limit_s: float | None = None,
    ) -> Contender:
        """Start `python -m worker arguments...` and wait until it is ready.

        Args:
            name: The contender's.
            worker: Module that runs in the process.
            arguments: Arguments of the module.
            threads: For every library that reads the usual variables.
            limit_s: The longest wait; None for any.

        Raises:
            BackendError: it could not start; the message is the child's own.
        """
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", str.__str__(worker), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            start_new_session=True,
        )  # fmt: skip
        contender = cls(name, process, high_priority=raise_priority(process.pid))
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(limit_s or 0, expire)
        if limit_s is not None:
            timer.start()
        try:
            contender.facts = contender._listen()["ready"]
        except BaseException as error:
            contender.stop()
            if expired.is_set():
                raise BackendError(
                    f"{name} was not ready after {limit_s:g} s", f"leave it out: --without {name}"
                ) from error
            raise
        finally:
            timer.cancel()
        contender.ready_s = time.perf_counter() - start
        return contender

    def run_for(self, seconds: float) -> npt.NDArray[np.float64]:
        """Let the child run for at least `seconds`: the time of each run, in milliseconds."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # then it has ended, which listening explains better
            self.process.stdin.write(f"{seconds}\n")
            self.process.stdin.flush()
        answer = self._listen()
        self.peak_rss_bytes = answer["peak_rss_bytes"]
        for stage, times in answer["stages_ns"].items():
            self.stages.setdefault(stage, []).append(_milliseconds(times))
        return _milliseconds(answer["times_ns"])

    def stop(self) -> None:
        """End the child; harmless when it has ended already."""
        self.process.kill()
        self.process.communicate()

    def _listen(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise BackendError(
                f"the benchmark of {self.name} ended early with exit code {code}",
                "its own message stands above; with less memory, try a smaller --batch",
            )
        message: dict[str, Any] = json.loads(line)
        if "error" in message:
            raise BackendError(message["error"], message["hint"])
        return message


def raise_priority(pid: int) -> bool:
    """Let a process that leads a session go first, so that neighbours take little of its time.

    Threads that wait for each other suffer far more from a busy core than their share of it: a
    ratio of two frameworks would be one of how they wait.

    Returns:
        Whether the system allows it, as it does root.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, HIGHEST_PRIORITY)
        # Sessions share the processor first, processes within them second (sched(7), autogroup).
        group = Path(f"/proc/{pid}/autogroup")
        if group.exists():
            group.write_text(f"{HIGHEST_PRIORITY}", encoding="utf-8")
        return True
    return False


def _milliseconds(nanoseconds: list[int]) -> npt.NDArray[np.float64]:
    return np.asarray(nanoseconds, dtype=np.float64) / 1e6
