"""The measurements of `resdeploy explain --slow` for an INT8 graph on this CPU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from resdeploy.benchmark_process.ceilings import best_ceilings
from resdeploy.benchmark_process.worker_process import Contender, Worker
from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import Artifact, Encoding
from resdeploy.errors import ResdeployError
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.machine.conditions import notices
from resdeploy.machine.device import available_cores, read_device
from resdeploy.progress import Progress, silent
from resdeploy.result_files.provenance import shown_path
from resdeploy.runtime.backends.base import OpenOptions
from resdeploy.runtime.backends.onnxruntime.cpu import open_artifact
from resdeploy.runtime.backends.onnxruntime.profile import Kernel, profile
from resdeploy.runtime.diagnosis.slowdown_causes import (
    UNDISTURBED,
    Cause,
    Observations,
    find_causes,
)

SECONDS = 1.0
WORK_SECONDS = 4.0
PROFILED_CALLS = 30
SLOWEST_KERNELS = 10
DOT_PRODUCTS = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdown:
    """The time of an INT8 graph, its slowest kernels, and the causes of avoidable time."""

    bundle: str
    artifact: str
    threads: int
    batch: int
    ms: float
    """Median time of one call of the INT8 graph."""
    fp32_ms: float
    cpu_share: float
    """Share of processor time that the threads of the INT8 graph received, from 0 to 1."""
    causes: tuple[Cause, ...]
    kernels: tuple[Kernel, ...]
    """The slowest kernels in ONNX Runtime's profile."""
    schema: str = "resdeploy.slowdown/1"

    @property
    def is_disturbed(self) -> bool:
        """Return True if other processes used the cores, so that the times are not reliable."""
        return self.cpu_share < UNDISTURBED

    @property
    def speedup(self) -> float:
        """The speed-up against the FP32 graph in the same engine."""
        return self.fp32_ms / self.ms


def explain_slowdown(
    bundle: Bundle,
    *,
    encoding: Encoding = Encoding.CPU,
    threads: int | None = None,
    batch: int = 1,
    progress: Progress = silent,
) -> Slowdown:
    """Time an INT8 graph on the CPU and find the causes of avoidable time.

    The graph is timed as a whole with several numbers of threads, then for `WORK_SECONDS` without
    a pause, then kernel by kernel.

    Args:
        bundle: A bundle with INT8 graphs.
        encoding: CPU for `int8-cpu.onnx`, TENSORRT for `int8.onnx`.
        threads: Threads of one inference; None for one per core.
        batch: Images in one call.
        progress: A callback that is called after each measurement.

    Raises:
        BackendError: ONNX Runtime cannot run the graph.
        BundleError: The bundle is damaged or has no INT8 graph.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    artifact = bundle.artifact("int8" if encoding is Encoding.TENSORRT else "int8-cpu")
    cores = available_cores()
    threads = threads or cores
    golden = bundle.golden().images
    images = golden[np.arange(batch) % len(golden)]
    counts = sorted({threads, cores, *(2**power for power in range(cores.bit_length()))})
    before = read_device()
    with progress("measuring", len(counts) + 4) as advance:
        fp32_ms = float(np.median(_times(bundle, bundle.artifact("fp32"), threads, images)[0]))
        advance(1)
        by_threads = {}
        for count in counts:
            by_threads[count] = float(np.median(_times(bundle, artifact, count, images)[0]))
            advance(1)
        times, share = _times(bundle, artifact, threads, images, WORK_SECONDS)
        advance(1)
        kernels = profile(
            bundle, artifact.name, encoding, images, threads=threads, runs=PROFILED_CALLS
        )
        advance(1)
        products = large_products(threads)
        advance(1)
    after = read_device()
    early, *_, late = np.array_split(times, 4)
    observations = Observations(
        encoding=encoding,
        threads=threads,
        ms=float(np.median(times)),
        kernels=kernels,
        by_threads=by_threads,
        early_ms=float(np.median(early)),
        late_ms=float(np.median(late)),
        cpu_share=share,
        products=products,
        int8_instructions=bool(DOT_PRODUCTS & after.processor.features),
        matrix_instructions=after.processor.multiplies_int8_matrices,
        notices=notices(before.conditions, after.conditions),
    )
    return Slowdown(
        bundle=shown_path(bundle.path),
        artifact=artifact.name,
        threads=threads,
        batch=batch,
        ms=observations.ms,
        fp32_ms=fp32_ms,
        cpu_share=share,
        causes=find_causes(observations),
        kernels=tuple(sorted(kernels, key=lambda kernel: -kernel.ms)[:SLOWEST_KERNELS]),
    )


def large_products(threads: int) -> Mapping[str, float]:
    """Measure operations per second by arithmetic; return nothing if the worker cannot start."""
    try:
        contender = Contender.start("ceilings", Worker.RUNTIME_CEILINGS, [str(threads)], threads)
    except ResdeployError:
        return {}
    try:
        contender.run_for(SECONDS)
    finally:
        contender.stop()
    measured = best_ceilings([contender.stages])
    return measured.operations_per_second if measured else {}


def _times(
    bundle: Bundle, artifact: Artifact, threads: int, images: UInt8Array, seconds: float = SECONDS
) -> tuple[np.ndarray, float]:
    """Return the milliseconds of single calls and the share of processor time they received."""
    times: list[int] = []
    with closing(open_artifact(bundle, artifact, OpenOptions(threads=threads))) as backend:
        backend.run(images)
        start, used = time.perf_counter(), time.process_time()
        while len(times) < 4 or time.perf_counter() - start < seconds:
            begin = time.perf_counter_ns()
            backend.run(images)
            times.append(time.perf_counter_ns() - begin)
        # Threads without work spin, so undisturbed threads use all of their processor time.
        share = (time.process_time() - used) / (time.perf_counter() - start) / threads
    return np.array(times) / 1e6, min(share, 1.0)
