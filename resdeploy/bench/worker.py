"""TODO."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from resdeploy.errors import ResdeployError

MIN_RUNS = 3


class StageTimes(dict[str, int]):
    """What a run gives that takes its own time apart: nanoseconds by stage."""


def run_worker(prepare: Callable[[], tuple[Callable[[], object], dict[str, Any]]]) -> None:
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
        stages: dict[str, list[int]] = {}
        while len(times) < MIN_RUNS or time.perf_counter_ns() < deadline:
            start = time.perf_counter_ns()
            given = run()
            times.append(time.perf_counter_ns() - start)
            if isinstance(given, StageTimes):
                for stage, duration in given.items():
                    stages.setdefault(stage, []).append(duration)
        say({"times_ns": times, "stages_ns": stages, "peak_rss_bytes": peak_rss_bytes()})


def peak_rss_bytes() -> int | None:
    """The most memory that this process has had resident; None where the kernel does not say.

    Not `getrusage`: its figure starts at that of the process that started this one.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return None
