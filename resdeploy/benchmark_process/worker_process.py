"""The worker processes of a benchmark, as the parent process starts and controls them.

Each contender has its own process, because the thread pools of several frameworks in one process
disturb each other by busy waiting. Both processes exchange lines of text: the worker reports that
it is ready; then it reads a number of seconds, runs for that time, and answers with the times of
its calls as JSON. A waiting worker blocks on its input and uses no processor time.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from resdeploy.errors import BackendError
from resdeploy.machine.python_process import python_command

HIGHEST_PRIORITY = -20
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
Rounds = list[npt.NDArray[np.float64]]
"""Times of single calls in milliseconds, one array for each round."""


class Worker(str, Enum):
    """The names of the worker modules; the runtime must not import those that need PyTorch."""

    PYTORCH = "resdeploy.train.bench.pytorch_worker"
    PYTORCH_CEILINGS = "resdeploy.train.bench.torch_ceilings"
    RUNTIME = "resdeploy.runtime.bench.backend_worker"
    RUNTIME_CEILINGS = "resdeploy.runtime.bench.onnxruntime_ceilings"


@dataclass(slots=True)
class Contender:
    """A running worker process and the data it has reported."""

    name: str
    process: subprocess.Popen[str]
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The facts that the worker reported when it was ready."""
    ready_s: float = 0.0
    """The time from the start of the process to its first answer."""
    stages: dict[str, Rounds] = field(default_factory=dict)
    """The times of the stages of its calls; empty if the worker does not report them."""
    peak_rss_bytes: int | None = None
    high_priority: bool = False

    @classmethod
    def start(
        cls,
        name: str,
        worker: Worker | str,
        arguments: Sequence[str],
        threads: int,
        limit_s: float | None = None,
        *,
        favoured: bool = True,
    ) -> Contender:
        """Start `python -m worker arguments...` and wait until it is ready.

        Args:
            name: The name of the contender, for messages.
            worker: The module that runs in the process.
            arguments: The command-line arguments of the module.
            threads: The number of threads for libraries that read `THREAD_VARIABLES`.
            limit_s: The longest wait in seconds; None for no limit.
            favoured: True to give the process the highest priority, if the system allows it.

        Raises:
            BackendError: The worker ended early, took too long, or reported this error.
        """
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
        start = time.perf_counter()
        process = subprocess.Popen(
            python_command(worker, *arguments),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            start_new_session=True,
        )  # fmt: skip
        contender = cls(name, process, high_priority=favoured and raise_priority(process.pid))
        assert process.stdout is not None
        try:
            if not select.select([process.stdout], [], [], limit_s)[0]:
                raise BackendError(
                    f"{name} was not ready after {limit_s:g} s", f"leave it out: --without {name}"
                )
            contender.facts = contender._receive()["ready"]
        except BaseException:
            contender.stop()
            raise
        contender.ready_s = time.perf_counter() - start
        return contender

    def run_for(self, seconds: float) -> npt.NDArray[np.float64]:
        """Let the worker run for at least `seconds`; return the time of each call in milliseconds.

        Raises:
            BackendError: The process ended.
        """
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # the process ended; `_receive` raises the better error
            self.process.stdin.write(f"{seconds}\n")
            self.process.stdin.flush()
        answer = self._receive()
        self.peak_rss_bytes = answer["peak_rss_bytes"]
        for stage, times in answer["stages_ns"].items():
            self.stages.setdefault(stage, []).append(_milliseconds(times))
        return _milliseconds(answer["times_ns"])

    def stop(self) -> None:
        """End the process, which may have ended already."""
        self.process.kill()
        self.process.communicate()

    def _receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            how, hint = f"with exit code {code}", "read its own message above"
            if code < 0:
                how = f"by the signal {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                hint = (
                    "the kernel kills a process if memory runs out, which its log (dmesg) shows: "
                    "use a smaller --batch"
                )
            raise BackendError(f"the benchmark process of {self.name} ended early {how}", hint)
        message: dict[str, Any] = json.loads(line)
        if "error" in message:
            raise BackendError(message["error"], message["hint"])
        if "exception" in message:
            reason = message["exception"]
            raise BackendError(
                f"the benchmark process of {self.name} ended early: {reason}", message["hint"]
            )
        return message


def raise_priority(pid: int) -> bool:
    """Give a process with its own session the highest priority; return True if this is allowed.

    The system allows it for root. At normal priority, other processes delay some threads, and a
    speed-up then also depends on how the other threads of each framework wait for them.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, HIGHEST_PRIORITY)
        # The scheduler divides time between sessions first, then within them (sched(7), autogroup).
        group = Path(f"/proc/{pid}/autogroup")
        if group.exists():
            group.write_text(f"{HIGHEST_PRIORITY}", encoding="utf-8")
        return True
    return False


def _milliseconds(nanoseconds: list[int]) -> npt.NDArray[np.float64]:
    return np.asarray(nanoseconds, dtype=np.float64) / 1e6
