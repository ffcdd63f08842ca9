"""A backend of the runtime as a contender that first shows its answers.

    python -m benchmarks.gpu.backend_worker BUNDLE BACKEND ARTIFACT BATCH LABELLED

The runtime's own contender checks a few golden images; this one tells of all, and of labelled ones.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.answers import read_answers
from resdeploy.bench.worker import run_worker
from resdeploy.bundle.bundle import open_bundle
from resdeploy.runtime.backends.base import Backend, Batches, OpenOptions
from resdeploy.runtime.backends.registry import candidates
from resdeploy.runtime.backends.tensorrt.flavour import Flavour


def prepare(
    path: str, backend: str, artifact: str, batch: int, labelled: str
) -> tuple[Callable[[], object], dict[str, Any]]:
    """Open one artifact for exactly this batch, check it, and return what runs golden images.

    Args:
        path: The bundle.
        backend: The engine's name.
        artifact: The graph's.
        batch: Images in one run.
        labelled: The folder of `gpu_answers.write_labelled`; empty for none.
    """
    bundle = open_bundle(Path(path))
    (candidate,) = [c for c in candidates(bundle, backend) if c.artifact.name == artifact]
    start = time.perf_counter()
    opened = candidate.open(bundle, OpenOptions(batches=Batches(batch, batch, batch)))
    opening_seconds = time.perf_counter() - start
    precision = candidate.artifact.precision.value
    answers = read_answers(opened, batch, bundle, precision, artifact, labelled)
    golden = bundle.golden().images
    images = golden[np.arange(batch) % len(golden)]
    facts = {
        "artifact": artifact,
        "version": candidate.engine.version(),
        "opening_seconds": opening_seconds,
        "cuda_graphs": cuda_graphs(opened, batch),
        "answers": answers,
    }
    return lambda: opened.run(images), facts


def cuda_graphs(backend: Backend, batch: int) -> str:
    """Who replays a recorded sequence of kernels, after a few runs: `yes`, `no` or `its own`."""
    if backend.name == Flavour.RTX.value:
        return "its own"  # TensorRT-RTX is told to record by itself, and does not say if it did
    return "yes" if batch in getattr(backend, "captured", ()) else "no"


if __name__ == "__main__":
    path, backend, artifact, batch, labelled = sys.argv[1:]
    run_worker(lambda: prepare(path, backend, artifact, int(batch), labelled))
