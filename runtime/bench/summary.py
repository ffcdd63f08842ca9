"""The figures of a contender, computed from its rounds."""

from __future__ import annotations

import statistics

import numpy as np

from resdeploy.benchmark_process.ceilings import median_of_rounds
from resdeploy.benchmark_process.roofline import CPU_ARITHMETIC, GPU_ARITHMETIC, Ceilings, roofline
from resdeploy.benchmark_process.workload import Workload
from resdeploy.bundle.operation_counts import WorkTotals
from resdeploy.machine.device import Scope
from resdeploy.result_files.benchmark import ImageEnergy, Timing
from resdeploy.runtime.bench.rounds import medians, speedup
from resdeploy.runtime.bench.runs import ContenderRunner


def summarise(
    runner: ContenderRunner,
    baseline: ContenderRunner | None,
    work: WorkTotals | None,
    ceilings: Ceilings | None,
    workload: Workload,
    energy: ImageEnergy | None,
) -> Timing:
    """Return the figures of a contender; `ceilings` are those of the device that it ran on."""
    spec, batch = runner.spec, workload.batch
    pooled = np.concatenate(runner.times)
    p50, p90, p99 = np.percentile(pooled, [50, 90, 99])
    centre, low, high = speedup(baseline.runs, runner.runs) if baseline else (None, None, None)
    stages = {name: median_of_rounds(rounds) for name, rounds in runner.stages.items()} or None
    arithmetic = GPU_ARITHMETIC if spec.runs_on is Scope.GPU else CPU_ARITHMETIC
    limit = roofline(work, ceilings, arithmetic[spec.precision], batch)
    inference_ms = stages["inference"] if stages else median_of_rounds(runner.times)
    return Timing(
        contender=spec.name,
        precision=spec.precision,
        encoding=spec.encoding,
        batch=batch,
        threads=workload.threads,
        streams=spec.streams,
        calls=len(pooled),
        p50_ms=float(p50),
        p90_ms=float(p90),
        p99_ms=float(p99),
        images_per_second=float(1000 * batch * len(pooled) / pooled.sum()),
        speedup=centre,
        speedup_low=low,
        speedup_high=high,
        energy=energy,
        round_ms=tuple(medians(runner.times).tolist()),
        quantiles_ms=tuple(np.percentile(pooled, range(101)).tolist()),
        stages_ms=stages,
        cold_start_s=statistics.median(runner.ready_s),
        peak_rss_bytes=runner.peak_rss_bytes,
        peak_gpu_bytes=runner.peak_gpu_bytes,
        file_bytes=spec.file_bytes,
        limit_share=limit.ms / inference_ms if limit else None,
        bound=limit.bound if limit else None,
    )
