"""The benchmark worker for a backend, which reports the check of its outputs.

    python -m benchmarks.gpu.backend_worker BUNDLE BACKEND ARTIFACT BATCH LABELLED

It checks all golden and labelled images, unlike `resdeploy.runtime.bench.worker`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.answers import check_outputs
from resdeploy.bench.worker import run_worker
from resdeploy.bundle.bundle import open_bundle
from resdeploy.runtime.backends.base import Backend, Batches, OpenOptions
from resdeploy.runtime.backends.registry import candidates
from resdeploy.runtime.backends.tensorrt.flavour import Flavour


def prepare(
    path: str, backend: str, artifact: str, batch: int, labelled: str
) -> tuple[Callable[[], object], dict[str, Any]]:
    """Open one artifact for one batch size, check its outputs, and return the function to time.

    `labelled` is the folder of `answers.write_labelled`; empty for none.
    """
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
    """Return `yes` if the backend replays a CUDA graph, `its own` if the framework may, or `no`."""
    if backend.name == Flavour.RTX.value:
        return "its own"  # TensorRT-RTX records CUDA graphs itself and does not report it
    return "yes" if batch in getattr(backend, "captured", ()) else "no"


if __name__ == "__main__":
    path, backend, artifact, batch, labelled = sys.argv[1:]
    run_worker(lambda: prepare(path, backend, artifact, int(batch), labelled))
