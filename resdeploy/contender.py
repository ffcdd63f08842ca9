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
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from resdeploy.errors import BackendError, ResdeployError

MIN_RUNS = 3


def answer(prepare: Callable[[], tuple[Callable[[], object], dict[str, Any]]]) -> None:
    """The child's whole life: prepare, then run for as long as each line of stdin says.

    Args:
        prepare: Loads everything and returns the function to time, with facts about it.
    """
    # What libraries print must not come between the lines of the conversation.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        run, facts = prepare()
        run()
    except ResdeployError as error:
        say({"error": str(error), "hint": error.hint})
        return
    say({"ready": facts})
    for line in sys.stdin:
        run()  # the others have emptied the caches meanwhile
        deadline = time.perf_counter_ns() + int(float(line) * 1e9)
        times: list[int] = []
        while len(times) < MIN_RUNS or time.perf_counter_ns() < deadline:
            start = time.perf_counter_ns()
            run()
            times.append(time.perf_counter_ns() - start)
        say({"times_ns": times})


@dataclass(slots=True)
class Contender:
    """The owner's end: a running child, and what it said of itself."""

    name: str
    process: subprocess.Popen[str]
    facts: dict[str, Any]

    @classmethod
    def start(cls, name: str, module: str, arguments: list[str], threads: int) -> Contender:
        """Start `python -m module arguments...` and wait until it is ready.

        Raises:
            BackendError: it could not start; the message is the child's own.
        """
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        contender = cls(name, process, {})
        try:
            contender.facts = contender._listen()["ready"]
        except BaseException:
            contender.stop()
            raise
        return contender

    def run_for(self, seconds: float) -> npt.NDArray[np.float64]:
        """Let the child run for at least `seconds`: the time of each run, in milliseconds."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # then it has ended, which listening explains better
            self.process.stdin.write(f"{seconds}\n")
            self.process.stdin.flush()
        return np.asarray(self._listen()["times_ns"], dtype=np.float64) / 1e6

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
