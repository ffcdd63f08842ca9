"""The loop of a worker process: it prepares a contender and times its calls."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from resdeploy.errors import ResdeployError, one_line_reason, remedy_for
from resdeploy.machine.device import parse_memory
from resdeploy.machine.host import Host
from resdeploy.machine.python_process import end_with_parent

MIN_CALLS = 3


class StageTimes(dict[str, int]):
    """The times of the stages of one call, in nanoseconds."""


def run_worker(prepare: Callable[[], tuple[Callable[[], object], dict[str, Any]]]) -> None:
    """Prepare a contender, then time its calls for each number of seconds read from stdin.

    Args:
        prepare: A function that returns the function to time, and facts about it in JSON form.
    """
    end_with_parent()
    # Messages that libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        run, facts = prepare()
        run()
        send({"ready": facts})
        _time_calls(run, send)
    except ResdeployError as error:
        send({"error": str(error), "hint": error.hint})
    except Exception as error:  # libraries raise many types
        hint = "read the traceback above, and report it if resdeploy is the cause"
        if (remedy := remedy_for(error, hint)) == hint:
            traceback.print_exc()
        send({"exception": f"{type(error).__name__}: {one_line_reason(error)}", "hint": remedy})


def _time_calls(run: Callable[[], object], send: Callable[[dict[str, Any]], None]) -> None:
    for line in sys.stdin:
        run()  # other contenders have replaced the content of the caches
        deadline = time.perf_counter_ns() + int(float(line) * 1e9)
        times: list[int] = []
        stages: dict[str, list[int]] = {}
        while len(times) < MIN_CALLS or time.perf_counter_ns() < deadline:
            start = time.perf_counter_ns()
            result = run()
            times.append(time.perf_counter_ns() - start)
            if isinstance(result, StageTimes):
                for stage, duration in result.items():
                    stages.setdefault(stage, []).append(duration)
        # The peak of `getrusage` would start at that of the parent process.
        peak = parse_memory(Host().text("proc/self/status"), "VmHWM")
        send({"times_ns": times, "stages_ns": stages, "peak_rss_bytes": peak})
