"""From the rounds of one contender to the figures that are shown: pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from resdeploy.bundle import Encoding
from resdeploy.ceilings import median_of_rounds
from resdeploy.roofline import CPU_ARITHMETIC, GPU_ARITHMETIC, Ceilings, Work, roofline
from resdeploy.runtime.energy.per_image import ImageEnergy
from resdeploy.runtime.energy.source import Scope
from resdeploy.runtime.rounds import medians, speedup
from resdeploy.runtime.track import Track
from resdeploy.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What one contender took; None is what could not be measured or compared."""

    contender: str
    precision: str
    encoding: Encoding
    batch: int
    threads: int
    runs: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    images_per_second: float
    speedup: float | None
    """Against PyTorch eager: median over rounds of its time divided by this one's."""
    speedup_low: float | None
    """Lower end of the 95 % bootstrap interval."""
    speedup_high: float | None
    energy: ImageEnergy | None
    round_ms: tuple[float, ...]
    """Median of each round; the same place is the same round in all contenders."""
    quantiles_ms: tuple[float, ...]
    """Of all runs: 0 % to 100 %."""
    stages_ms: Mapping[str, float] | None
    """Medians of the parts of a run, end to end."""
    cold_start_s: float | None
    """From the start of a process to its first answer; median of all heats."""
    peak_rss_bytes: int | None
    peak_gpu_bytes: int | None
    file_bytes: int | None
    limit_share: float | None
    """The roofline's time divided by the median: 1 would be as fast as this machine can."""
    bound: str | None
    """`compute` or `memory`: what sets that limit."""


def summarise(
    track: Track,
    baseline: Track | None,
    work: Work | None,
    ceilings: Ceilings | None,
    workload: Workload,
    energy: ImageEnergy | None,
) -> Timing:
    """Pool a contender's rounds; `ceilings` are those of what it ran on."""
    entry, batch = track.entry, workload.batch
    pooled = np.concatenate(track.times)
    p50, p90, p99 = np.percentile(pooled, [50, 90, 99])
    faster = None if baseline is None else speedup(baseline.times, track.times)
    stages = {name: median_of_rounds(rounds) for name, rounds in track.stages.items()} or None
    arithmetic = GPU_ARITHMETIC if entry.runs_on is Scope.GPU else CPU_ARITHMETIC
    limit = roofline(work, ceilings, arithmetic[entry.precision], batch)
    inference_ms = stages["inference"] if stages else median_of_rounds(track.times)
    return Timing(
        contender=entry.name,
        precision=entry.precision,
        encoding=entry.encoding,
        batch=batch,
        threads=workload.threads,
        runs=len(pooled),
        p50_ms=float(p50),
        p90_ms=float(p90),
        p99_ms=float(p99),
        images_per_second=float(1000 * batch * len(pooled) / pooled.sum()),
        speedup=faster.median if faster else None,
        speedup_low=faster.low if faster else None,
        speedup_high=faster.high if faster else None,
        energy=energy,
        round_ms=tuple(medians(track.times).tolist()),
        quantiles_ms=tuple(np.percentile(pooled, range(101)).tolist()),
        stages_ms=stages,
        cold_start_s=statistics.median(track.ready_s),
        peak_rss_bytes=track.peak_rss_bytes,
        peak_gpu_bytes=track.peak_gpu_bytes,
        file_bytes=entry.file_bytes,
        limit_share=limit.ms / inference_ms if limit else None,
        bound=limit.bound if limit else None,
    )
