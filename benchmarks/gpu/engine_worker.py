"""Two workers: `build` builds an engine of TensorRT, `time` times a backend of the runtime.

    python -m benchmarks.gpu.engine_worker build BUNDLE FLAVOUR ARTIFACT BATCH
    python -m benchmarks.gpu.engine_worker time BUNDLE BACKEND ARTIFACT BATCH LABELLED

Builds have their own process, so that a crash or a memory leak does not affect the benchmark.
Unlike `resdeploy.runtime.bench.backend_worker`, `time` checks all golden and labelled images.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.logit_checks import check_outputs
from resdeploy.benchmark_process.worker_loop import run_worker
from resdeploy.bundle.bundle import open_bundle
from resdeploy.json_documents import jsonable
from resdeploy.runtime.backends.base import Backend, Batches, OpenOptions
from resdeploy.runtime.backends.registry import candidates
from resdeploy.runtime.backends.tensorrt.build import build
from resdeploy.runtime.backends.tensorrt.options import BuildOptions
from resdeploy.runtime.backends.tensorrt.tensorrt_or_rtx import Flavour


def build_for_batch(
    path: str, flavour: str, artifact: str, batch: int
) -> tuple[Callable[[], object], dict[str, Any]]:
    """Build an engine and return its facts, with a function that does nothing."""
    bundle = open_bundle(Path(path))
    options = BuildOptions(batches=Batches(batch, batch, batch))
    facts = jsonable(build(bundle, bundle.artifact(artifact), Flavour(flavour), options))
    del facts["engine"]  # a path in this machine's cache
    return lambda: None, {**facts, "batch": batch}


def prepare(
    path: str, backend: str, artifact: str, batch: int, labelled: str
) -> tuple[Callable[[], object], dict[str, Any]]:
    """Open one artifact for one batch size, check its outputs, and return the function to time."""
    bundle = open_bundle(Path(path))
    (candidate,) = [c for c in candidates(bundle, backend) if c.artifact.name == artifact]
    start = time.perf_counter()
    opened = candidate.open(bundle, OpenOptions(batches=Batches(batch, batch, batch)))
    opening_seconds = time.perf_counter() - start
    precision = candidate.artifact.precision.value
    golden = bundle.golden().images
    images = golden[np.arange(batch) % len(golden)]
    facts = {
        "artifact": artifact,
        "version": candidate.engine.version(),
        "opening_seconds": opening_seconds,
        "cuda_graphs": cuda_graphs(opened, batch),
        "answers": check_outputs(opened, batch, bundle, precision, artifact, labelled),
    }
    return lambda: opened.run(images), facts


def cuda_graphs(backend: Backend, batch: int) -> str:
    """Return `yes` if the backend replays a CUDA graph, `its own` if TensorRT decides, or `no`."""
    if backend.name == Flavour.RTX.value:
        return "its own"  # TensorRT-RTX records CUDA graphs itself and does not report it
    return "yes" if batch in getattr(backend, "captured", ()) else "no"


if __name__ == "__main__":
    command, path, engine, artifact, batch, *rest = sys.argv[1:]
    if command == "build":
        run_worker(lambda: build_for_batch(path, engine, artifact, int(batch)))
    else:
        run_worker(lambda: prepare(path, engine, artifact, int(batch), *rest))
