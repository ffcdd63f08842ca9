"""Contenders through all heats of a benchmark: their processes, and what they leave behind.

Each heat has processes of its own: where its memory lies makes one process a little faster than the
next, and an interval must know of that. Every start is timed, too.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from resdeploy.bench.process import Contender, Rounds
from resdeploy.errors import BackendError, ResdeployError
from resdeploy.machine.device import Scope
from resdeploy.machine.nvml import process_memory
from resdeploy.progress import Progress
from resdeploy.runtime.bench.contenders import BASELINE, CEILINGS, Entry
from resdeploy.runtime.bench.rounds import ROUNDS, narrow_enough, play_round, turns, warm_up

logger = logging.getLogger(__name__)

HEATS = 5
# Who takes longer to be ready runs on in the next heat: compilers, above all.
RESTART_SECONDS = 5.0
START_SECONDS = 180.0


@dataclass(slots=True)
class Track:
    """One contender through all heats."""

    entry: Entry
    contender: Contender | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    heats: list[Rounds] = field(default_factory=list)
    stages: dict[str, Rounds] = field(default_factory=dict)
    ready_s: list[float] = field(default_factory=list)
    peak_rss_bytes: int | None = None
    peak_gpu_bytes: int | None = None
    settled: bool = True
    favoured: bool = True

    @property
    def times(self) -> Rounds:
        """Of all heats."""
        return [rounds for heat in self.heats for rounds in heat]

    @property
    def running(self) -> Contender:
        """Its process."""
        assert self.contender is not None
        return self.contender

    def start(self, threads: int) -> None:
        """Start a process, unless one is running.

        Raises:
            BackendError: it cannot start.
        """
        if self.contender is not None:
            return
        entry = self.entry
        self.contender = Contender.start(
            entry.name, entry.module, list(entry.arguments), threads, START_SECONDS
        )
        self.facts = self.contender.facts
        self.favoured = self.favoured and self.contender.favoured
        self.ready_s.append(self.contender.ready_s)
        on_gpu = self.facts.get("device") == "cuda"
        self.entry = replace(
            entry,
            precision=self.facts.get("precision", entry.precision),
            runs_on=Scope.GPU if on_gpu else entry.runs_on,
            file_bytes=self.facts.get("file_bytes", entry.file_bytes),
        )

    def warm_up(self) -> None:
        """Run until times are stable."""
        self.settled = warm_up(self.running) and self.settled
        self.running.stages.clear()

    def collect(self, nvml: Any) -> None:
        """What the process has told besides its times."""
        for stage, rounds in self.running.stages.items():
            self.stages.setdefault(stage, []).extend(rounds)
        self.running.stages.clear()
        gpu = process_memory(nvml, self.running.process.pid)
        self.peak_rss_bytes = _larger(self.peak_rss_bytes, self.running.peak_rss_bytes)
        self.peak_gpu_bytes = _larger(self.peak_gpu_bytes, gpu)

    def stop(self) -> None:
        """End the process, if there is one."""
        if self.contender is not None:
            self.contender.stop()
            self.contender = None


def start_all(entries: Sequence[Entry], threads: int, *, needed: str | None = None) -> list[Track]:
    """Those that can start, in order; of the others the reason is logged.

    Args:
        entries: Who takes part.
        threads: Of each.
        needed: Who may not be left out.

    Raises:
        BackendError: `needed`, or none of those that race, could start.
    """
    tracks: list[Track] = []
    try:
        for entry in entries:
            track = Track(entry)
            try:
                track.start(threads)
            except ResdeployError as error:
                if entry.name == needed:
                    raise
                logger.warning("%s is left out: %s (%s)", entry.label, error, error.hint)
                continue
            tracks.append(track)
        if not racing(tracks):
            raise BackendError("not one contender could start", "see the warnings above")
    except BaseException:
        stop_all(tracks)
        raise
    return tracks


def stop_all(tracks: Sequence[Track]) -> None:
    """End every process."""
    for track in tracks:
        track.stop()


def racing(tracks: Sequence[Track]) -> list[Track]:
    """Those that run the network, the baseline first where it takes part."""
    return [track for track in tracks if track.entry.name != CEILINGS]


def baseline_of(tracks: Sequence[Track]) -> Track | None:
    """The one that the others are compared with."""
    first = racing(tracks)[0]
    return first if first.entry.name == BASELINE else None


def race(
    tracks: Sequence[Track],
    threads: int,
    *,
    seconds: float,
    within: float,
    nvml: Any,
    progress: Progress,
) -> None:
    """All heats, of equal length; the last one ends when enough is known.

    Args:
        tracks: Started; they are running afterwards.
        threads: Of each.
        seconds: At most, for each, unless `ROUNDS` take longer.
        within: Widest interval of a speed-up, as a share of it, that is enough.
        nvml: NVIDIA's module, or None.
        progress: Told of each round.
    """
    rounds, turn = turns(seconds)
    generator = random.Random(0)
    with progress("benchmarking", rounds) as advance:
        for heat in range(HEATS):
            for track in tracks:
                track.start(threads)
                track.warm_up()
                track.heats.append([])
            left = seconds * len(tracks) / HEATS
            for number in range((heat + 1) * rounds // HEATS - heat * rounds // HEATS):
                if number >= max(ROUNDS // HEATS, 1) and (
                    left < 0 or (heat == HEATS - 1 and _known(tracks, within))
                ):
                    break
                start = time.perf_counter()
                laps = play_round([track.running for track in tracks], turn, generator)
                for track, lap in zip(tracks, laps):
                    track.heats[-1].append(lap)
                left -= time.perf_counter() - start
                advance(1)
            for track in tracks:
                track.collect(nvml)
                if heat < HEATS - 1 and track.ready_s[0] <= RESTART_SECONDS:
                    track.stop()


def _known(tracks: Sequence[Track], within: float) -> bool:
    baseline = baseline_of(tracks)
    others = [track.heats for track in racing(tracks) if track is not baseline]
    return baseline is not None and narrow_enough(baseline.heats, others, within)


def _larger(first: int | None, second: int | None) -> int | None:
    known = [number for number in (first, second) if number is not None]
    return max(known, default=None)
