"""NVIDIA's tegrastats, for boards whose sensors' files cannot be read."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from resdeploy.machine.device import Scope
from resdeploy.runtime.energy.rails import module_power, module_rails
from resdeploy.runtime.energy.source import PowerSource, Reading

COMMAND = ("tegrastats", "--interval", "100")
STALE_SECONDS = 0.5
START_SECONDS = 3.0
# `VDD_IN 4548mW/4548mW`: now, then up to two averages.
RAIL = re.compile(r"(?<!\S)([A-Z][A-Z0-9_]*) (-?\d+)mW(?:/-?\d+mW){0,2}(?!\S)")


def parse_rails(line: str) -> dict[str, float]:
    """Milliwatts of each rail of one line; unconnected ones are left out."""
    return {name: float(power) for name, power in RAIL.findall(line) if name != "NC"}


class Tegrastats:
    """A running tegrastats and the last it said."""

    def __init__(
        self, command: Sequence[str] = COMMAND, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Start it.

        Raises:
            OSError: it is not there, or may not be run.
        """
        self._clock = clock
        self._last: tuple[float, dict[str, float]] | None = None
        self._spoke = threading.Event()
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace"
        )
        self._thread = threading.Thread(target=self._listen, name="tegrastats", daemon=True)
        self._thread.start()

    def rails(self) -> dict[str, float]:
        """Milliwatts, now; empty where it has fallen silent."""
        last = self._last
        if last is None or self._clock() - last[0] > STALE_SECONDS:
            return {}
        return last[1]

    def wait(self, seconds: float) -> dict[str, float]:
        """The same, after the first line has come or the time is over."""
        self._spoke.wait(seconds)
        return self.rails()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._thread.join()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._last = (self._clock(), parse_rails(line))
                self._spoke.set()
        self._spoke.set()  # it ended: nobody need wait for more


def start_tegrastats(command: Sequence[str] = COMMAND) -> PowerSource | None:
    """The module's power as tegrastats tells it; None where it does not."""
    running: Tegrastats | None = None
    with suppress(OSError):
        running = Tegrastats(command)
    if running is None:
        return None
    rails_of_module = module_rails(running.wait(START_SECONDS))
    if rails_of_module is None:
        running.close()
        return None

    def read() -> Reading:
        milliwatts = module_power(running.rails())
        return None if milliwatts is None else milliwatts / 1000

    return PowerSource(
        name="tegrastats", scope=Scope.MODULE, rails=rails_of_module, read=read, close=running.close
    )
