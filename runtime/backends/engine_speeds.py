"""The measured speeds of the CPU engines that can run the same graph, kept in the user's cache.

    speeds/KEY.json  one measurement; KEY is the sha256 of everything on which the order depends:
                     the graph, the engines' versions, the processor, cores, threads, `REVISION`

They only give the order in which `auto` tries the engines. The engine that is opened must pass the
golden check like any other, so a file that is damaged or was written by someone else can make
answers slower, but not wrong.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resdeploy.errors import DocumentError, OutputError
from resdeploy.filesystem import cache_folder, read_limited, sha256, write_file
from resdeploy.json_documents import decode, to_text
from resdeploy.machine.cpu import read_cpu
from resdeploy.machine.device import available_cores
from resdeploy.runtime.backends.registry import Candidate
from resdeploy.tables import plural

logger = logging.getLogger(__name__)

# Increase this number when another way of measuring makes the stored times invalid.
REVISION = 1
MAX_BYTES = 1 << 16
MAX_FILES = 256
"""The number of measurements that are kept, each of about 1 kB; the oldest are removed first."""
# Equal engines beat each other in this many rounds by chance with this probability: a sign test.
CHANCE = 0.05
# OpenVINO's logits are not bit-exact and its start takes longer, which a smaller gain is not worth.
MIN_GAIN = 1.03


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedKey:
    """The engines that can run one graph here, and everything else on which their order depends."""

    artifact: str
    graph_sha256: str
    engines: Mapping[str, str]
    """Version of each engine by name, in the order in which they are tried without a measurement:
    the quickest to start comes first."""
    architecture: str
    processor: str | None
    features: tuple[str, ...]
    cores: int
    """Cores that this process may use."""
    threads: int
    """Threads of one inference."""
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
    """Median time of one image in each round, in milliseconds, by engine."""

    def __post_init__(self) -> None:
        if list(self.round_ms) != list(self.key.engines):
            raise ValueError("the engines of the times are not those of the key")
        times = [time for rounds in self.round_ms.values() for time in rounds]
        if len({len(rounds) for rounds in self.round_ms.values()}) != 1 or not times:
            raise ValueError("the engines have different numbers of rounds, or none")
        if not all(0 < time < math.inf for time in times):
            raise ValueError("a time is not a positive number")

    def __str__(self) -> str:
        first, *others = self.round_ms
        total, medians = len(self.round_ms[first]), self.median_ms
        times = [f"{first} {medians[first]:.2f} ms"]
        times += [
            f"{name} {medians[name]:.2f} ms (faster in {self.rounds_won(name, first)} of {total} "
            "rounds)"
            for name in others
        ]
        reason = ""
        if self.order[0] == first and min(medians, key=medians.__getitem__) != first:
            reason = f", because the gain is within the noise or below {MIN_GAIN - 1:.0%}"
        return (
            f"{self.key.artifact} with {plural(self.key.threads, 'thread')}: {', '.join(times)}; "
            f"auto uses {self.order[0]}{reason}"
        )

    @property
    def median_ms(self) -> dict[str, float]:
        """Median over the rounds, in milliseconds, by engine."""
        return {name: float(np.median(rounds)) for name, rounds in self.round_ms.items()}

    @property
    def order(self) -> list[str]:
        """Names of the engines in the order in which `auto` tries them.

        The first engine of the key keeps its place unless another one is faster beyond the noise.
        """
        first, *others = self.round_ms
        by_time = sorted(others, key=self.median_ms.__getitem__)
        faster = [name for name in by_time if self._is_faster(name, first)]
        return [*faster, first, *(name for name in by_time if name not in faster)]

    def rounds_won(self, name: str, other: str) -> int:
        """Count the rounds in which the engine `name` was faster than `other`."""
        return sum(a < b for a, b in zip(self.round_ms[name], self.round_ms[other]))

    def _is_faster(self, name: str, other: str) -> bool:
        rounds = len(self.round_ms[name])
        lost = rounds - self.rounds_won(name, other)
        chance = sum(math.comb(rounds, count) for count in range(lost + 1)) / 2**rounds
        medians = self.median_ms
        return chance <= CHANCE and medians[other] >= MIN_GAIN * medians[name]


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
        architecture=cpu.architecture,
        processor=cpu.model,
        features=tuple(sorted(cpu.features)),
        cores=cores,
        threads=threads or cores,
    )


def sort_by_speed(candidates: Sequence[Candidate], speeds: EngineSpeeds | None) -> list[Candidate]:
    """Return the candidates with those that were measured in front, in the measured order."""
    if speeds is None:
        return list(candidates)
    order = {(name, speeds.key.artifact): place for place, name in enumerate(speeds.order)}
    return sorted(candidates, key=lambda c: order.get((c.engine.name, c.artifact.name), len(order)))


def read_speeds(key: SpeedKey) -> EngineSpeeds | None:
    """Return the measurement for exactly this key; None if the cache holds none that is valid."""
    with suppress(DocumentError, RuntimeError, ValueError):
        found = decode(EngineSpeeds, read_limited(key.path, MAX_BYTES, DocumentError, ""))
        return found if found.key == key else None
    return None


def store_speeds(speeds: EngineSpeeds) -> None:
    """Write a measurement to the cache; a cache that cannot be written is no error."""
    try:
        path = speeds.key.path
        write_file(path, to_text(speeds).encode())
        files = sorted(path.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)
        for file in files[:-MAX_FILES]:
            file.unlink()
    except (OSError, OutputError, RuntimeError) as error:
        logger.debug("the speeds of the engines are not stored: %s", error)
