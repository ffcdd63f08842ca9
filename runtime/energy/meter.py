"""The search for power sources, and a thread that samples one of them."""

from __future__ import annotations

import threading
import time

from resdeploy.machine.host import Host
from resdeploy.machine.jetson import read_jetson
from resdeploy.runtime.energy.counters import find_nvml, find_rapl
from resdeploy.runtime.energy.rails import find_rails
from resdeploy.runtime.energy.source import PowerSource, Reading
from resdeploy.runtime.energy.tegrastats import start_tegrastats
from resdeploy.runtime.energy.trace import Trace

PERIOD_SECONDS = 0.02


def find_sources(host: Host) -> list[PowerSource]:
    """Return all power sources that can be read here; the caller must close them."""
    if read_jetson(host):
        found = [find_rails(host) or start_tegrastats()]
    else:
        found = [find_nvml(host.nvml()), find_rapl(host)]
    return [source for source in found if source is not None]


class Meter:
    """A context manager that samples a power source every `period` seconds."""

    def __init__(self, source: PowerSource, period: float = PERIOD_SECONDS) -> None:
        self.source = source
        self._period = period
        self._samples: list[tuple[float, Reading]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="meter", daemon=True)

    def trace(self) -> Trace:
        return Trace.from_samples(self._samples.copy(), cumulative=self.source.cumulative)

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._read()  # the last window must end before the last sample

    def _sample(self) -> None:
        while not self._stop.is_set():
            self._read()
            self._stop.wait(self._period)

    def _read(self) -> None:
        before = time.perf_counter()
        value = self.source.read()
        self._samples.append(((before + time.perf_counter()) / 2, value))
