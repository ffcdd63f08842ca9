"""The speeds of the CPU engines that can run the same graph, measured once and kept in the cache.

    speeds/KEY.json  one measurement; KEY is the sha256 of a `SpeedKey`

They only give the order in which `auto` tries the engines. The engine that is opened must pass the
golden check like any other, so a file that is damaged or was written by someone else can make
answers slower, but not wrong.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resdeploy.bundle.bundle import Bundle
from resdeploy.errors import DocumentError, OutputError, ResdeployError
from resdeploy.filesystem import cache_folder, read_limited, sha256, write_file
from resdeploy.json_documents import decode, to_text
from resdeploy.machine.cpu import read_cpu
from resdeploy.machine.device import available_cores
from resdeploy.progress import Progress
from resdeploy.runtime.backends.base import OpenOptions
from resdeploy.runtime.backends.registry import Candidate
from resdeploy.statistics import MIN_GAIN
from resdeploy.tables import plural

logger = logging.getLogger(__name__)

REVISION = 2  # of the way of measuring
MAX_BYTES = 1 << 16
MAX_FILES = 256  # of the cache, 1 MB in all; more than the graphs in use on one machine
# With 9 rounds, a faster engine may lose one to noise by the sign test below. Five can decide, too.
ROUNDS, MIN_ROUNDS = 9, 5
TURN_SECONDS = 0.2  # at 30 ms per image, 6 images
SECONDS = 5.0  # after this time, only `MIN_ROUNDS` are completed
START_SECONDS = 60.0  # the time limit for the start of an engine's process
CHANCE = 0.05  # largest probability that equal engines win so many rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedKey:
    """The engines that can run one graph here, and everything else on which their order depends."""

    artifact: str
    graph_sha256: str
    engines: Mapping[str, str]
    """Version of each engine by name; the quickest to start comes first."""
    processor: tuple[str, ...]  # architecture, model, instruction sets and their limit
    cores: int
    threads: int
    revision: int = REVISION

    @property
    def path(self) -> Path:
        """Return the file of the cache; raise RuntimeError if the user has no home folder."""
        return cache_folder() / "speeds" / f"{sha256(to_text(self).encode())[:32]}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpeeds:
    """One measurement, in which the engines took turns."""

    key: SpeedKey
    round_ms: Mapping[str, tuple[float, ...]]
    """Shortest time of one image in each round, in milliseconds, by engine. Other programs on the
    machine only lengthen times."""

    def __post_init__(self) -> None:
        times = np.array(list(self.round_ms.values()))  # a ValueError if their numbers differ
        right = list(self.round_ms) == list(self.key.engines)
        if not right or not 0 < times.size <= ROUNDS * len(times) or not (times > 0).all():
            raise ValueError("the times are not those of the engines, or not positive")

    @property
    def fastest(self) -> str:
        """Name of the first engine, or of one that is faster by `MIN_GAIN` and by a sign test."""
        first, *others = self.round_ms
        best, rounds = first, len(self.round_ms[first])
        for name in others:
            lost = sum(a >= b for a, b in zip(self.round_ms[name], self.round_ms[first]))
            chance = sum(math.comb(rounds, count) for count in range(lost + 1)) / 2**rounds
            if chance <= CHANCE and self._ms(first) >= MIN_GAIN * self._ms(name):
                best = min(best, name, key=self._ms)
        return best

    def __str__(self) -> str:
        ranking = ", ".join(f"{name} {self._ms(name):.2f} ms" for name in self.round_ms)
        threads, best = plural(self.key.threads, "thread"), self.fastest
        noise = "" if best == min(self.round_ms, key=self._ms) else ", as it is not clearly slower"
        return f"{self.key.artifact} with {threads}: {ranking}; auto uses {best}{noise}"

    def _ms(self, engine: str) -> float:
        return float(np.median(self.round_ms[engine]))


def speed_key(candidates: Sequence[Candidate], threads: int | None) -> SpeedKey | None:
    """Return the key of the engines that can run the first graph; None if there is no choice.

    A GPU engine that comes first is not compared with others.
    """
    first = candidates[0].artifact
    rivals = [c.engine for c in candidates if c.engine.on_cpu and c.artifact == first]
    if not candidates[0].engine.on_cpu or len(rivals) < 2:
        return None
    cpu, cores = read_cpu(), available_cores()
    return SpeedKey(
        artifact=first.name,
        graph_sha256=first.sha256,
        engines={engine.name: engine.version() or "" for engine in rivals},
        processor=(
            cpu.architecture,
            cpu.model or "",
            *sorted(cpu.features),
            # oneDNN, which computes in OpenVINO, uses no instructions beyond this.
            "oneDNN up to " + os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper(),
        ),
        cores=cores,
        threads=threads or cores,
    )


def sort_by_speed(bundle: Bundle, found: list[Candidate], options: OpenOptions) -> list[Candidate]:
    """Return the candidates, with the one in front that is known to be fastest, if any is known."""
    key = speed_key(found, options.threads)
    speeds = read_speeds(key) if key else None
    if key and speeds is None and options.measure:
        speeds = measure_speeds(bundle, key, options.progress)
    best = (speeds.fastest, speeds.key.artifact) if speeds else ()
    return sorted(found, key=lambda c: (c.engine.name, c.artifact.name) != best)


def read_speeds(key: SpeedKey) -> EngineSpeeds | None:
    """Return the measurement for exactly this key; None if the cache holds none that is valid."""
    with suppress(DocumentError, OSError, RuntimeError, ValueError):
        if key.path.is_file():  # a pipe would block
            found = decode(EngineSpeeds, read_limited(key.path, MAX_BYTES, DocumentError, ""))
            return found if found.key == key else None
    return None


def measure_speeds(
    bundle: Bundle, key: SpeedKey, progress: Progress, clock: Callable[[], float] = time.monotonic
) -> EngineSpeeds | None:
    """Time single images on every engine of `key`, and store the times if the cache is writable.

    Each engine has a process of its own, because thread pools in one process disturb each other by
    busy waiting. They take turns. Return None if an engine does not run or fails the golden check.
    """
    from resdeploy.benchmark_process.worker_process import Contender, Worker
    from resdeploy.benchmark_process.workload import Workload

    workload = Workload(bundle=bundle.path, batch=1, threads=key.threads).to_arguments()
    contenders: list[Contender] = []
    rounds: list[list[float]] = []
    with ExitStack() as stack, progress("measuring the engines", ROUNDS) as advance:
        try:
            for name in key.engines:
                contender = Contender.start(
                    name, Worker.RUNTIME, (name, key.artifact, *workload), key.threads,
                    START_SECONDS, favoured=False,
                )  # fmt: skip
                stack.callback(contender.stop)
                contenders.append(contender)
            end = clock() + SECONDS
            while len(rounds) <= MIN_ROUNDS or (len(rounds) <= ROUNDS and clock() < end):
                turns = [contender.run_for(TURN_SECONDS) for contender in contenders]
                rounds.append([float(np.min(times)) for times in turns])
                advance(1)
        except (OSError, ResdeployError) as error:
            logger.warning("the engines %s are not compared: %s", ", ".join(key.engines), error)
            return None
    # The first round warms the engines up.
    speeds = EngineSpeeds(key=key, round_ms=dict(zip(key.engines, zip(*rounds[1:]))))
    logger.info("%s", speeds)
    with suppress(OutputError, RuntimeError):
        write_file(key.path, to_text(speeds).encode())
        _prune(key.path.parent)
    return speeds


def _prune(folder: Path) -> None:
    """Remove the oldest measurements beyond `MAX_FILES`."""
    with suppress(OSError):  # another process may remove the same files
        files = sorted(folder.glob("*.json"), key=lambda path: path.lstat().st_mtime)
        for path in files[:-MAX_FILES]:
            path.unlink(missing_ok=True)
