"""The power source that reads NVIDIA's tegrastats, for boards with unreadable sensor files."""

from __future__ import annotations

import math
import re
import subprocess
import threading
import time
from collections.abc import Callable, Sequence

from resdeploy.machine.device import Scope
from resdeploy.runtime.energy.rails import module_power, module_rails
from resdeploy.runtime.energy.source import PowerSource, Reading

COMMAND = ("tegrastats", "--interval", "100")
STALE_SECONDS = 0.5
START_SECONDS = 3.0
# `VDD_IN 4548mW/4548mW`: the current power, then up to two averages.
RAIL = re.compile(r"(?<!\S)([A-Z][A-Z0-9_]*) (-?\d+)mW(?:/-?\d+mW){0,2}(?!\S)")


def parse_rails(line: str) -> dict[str, float]:
    """Parse the milliwatts of each rail in one line; skip unconnected rails."""
    return {name: float(power) for name, power in RAIL.findall(line) if name != "NC"}


class Tegrastats:
    """A running tegrastats process and its last line.

    Raises:
        OSError: The command is missing, or this user may not run it.
    """

    def __init__(
        self, command: Sequence[str] = COMMAND, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock = clock
        self._last: tuple[float, dict[str, float]] = (-math.inf, {})
        self._started = threading.Event()
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace"
        )
        self._thread = threading.Thread(target=self._read_lines, name="tegrastats", daemon=True)
        self._thread.start()

    def rails(self) -> dict[str, float]:
        """Return the milliwatts of each rail; empty if the last line is too old."""
        seconds, rails = self._last
        return rails if self._clock() - seconds <= STALE_SECONDS else {}

    def wait(self, seconds: float) -> dict[str, float]:
        """Wait at most `seconds` for the first line, and return the milliwatts of each rail."""
        self._started.wait(seconds)
        return self.rails()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()

    def _read_lines(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._last = (self._clock(), parse_rails(line))
                self._started.set()
        self._started.set()  # the process has ended: `wait` must not wait for a line


def start_tegrastats(command: Sequence[str] = COMMAND) -> PowerSource | None:
    """Start tegrastats as a source of the module's power; return None if it reports none."""
    try:
        process = Tegrastats(command)
    except OSError:
        return None
    rails = module_rails(process.wait(START_SECONDS))
    if rails is None:
        process.close()
        return None

    def read() -> Reading:
        milliwatts = module_power(process.rails())
        return None if milliwatts is None else milliwatts / 1000

    return PowerSource(
        name="tegrastats", scope=Scope.MODULE, rails=rails, read=read, close=process.close
    )
