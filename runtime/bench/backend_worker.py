"""The benchmark worker for a backend: `python -m resdeploy.runtime.bench.backend_worker`.

Like `runtime.model.load`, it compares some outputs with the golden logits before it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from resdeploy.benchmark_process.worker_loop import run_worker
from resdeploy.benchmark_process.workload import Workload
from resdeploy.bundle.bundle import open_bundle
from resdeploy.bundle.golden import Golden
from resdeploy.bundle.manifest import Artifact
from resdeploy.errors import BackendError
from resdeploy.runtime.backends.base import Backend, Batches, OpenOptions
from resdeploy.runtime.backends.registry import candidates
from resdeploy.runtime.verification.open_verified import check_at_load


def prepare(
    workload: Workload, backend: str, artifact: str
) -> tuple[Callable[[], object], dict[str, Any]]:
    """Load and check one artifact; return the function to time, and no facts."""
    bundle = open_bundle(workload.bundle)
    (candidate,) = [c for c in candidates(bundle, backend) if c.artifact.name == artifact]
    batches = Batches(workload.batch, workload.batch, workload.batch)
    options = OpenOptions(threads=workload.threads, batches=batches, streams=workload.streams)
    opened = candidate.open(bundle, options)
    golden = bundle.golden()
    require_golden(opened, candidate.artifact, golden)
    return workload.make_call(bundle, golden.images, opened.run), {}


def require_golden(backend: Backend, artifact: Artifact, golden: Golden) -> None:
    """Compare a few outputs with the golden logits.

    Raises:
        BackendError: The outputs differ from PyTorch's.
    """
    check = check_at_load(backend, artifact, golden)
    if not check.passed:
        raise BackendError(
            f"the outputs of {backend.name} with {artifact.name} differ from PyTorch's "
            f"({check.figures})",
            "run resdeploy verify to see the figures",
        )


if __name__ == "__main__":
    backend, artifact, *rest = sys.argv[1:]
    run_worker(lambda: prepare(Workload.from_arguments(rest), backend, artifact))
