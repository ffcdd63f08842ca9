"""One engine, built in a process of its own: `python -m benchmarks.gpu.build_worker`.

A builder that crashes or leaks takes nothing else with it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resdeploy.bench.worker import run_worker
from resdeploy.bundle.bundle import open_bundle
from resdeploy.documents import jsonable
from resdeploy.runtime.backends.base import Batches
from resdeploy.runtime.backends.tensorrt.build import build
from resdeploy.runtime.backends.tensorrt.flavour import Flavour
from resdeploy.runtime.backends.tensorrt.options import BuildOptions


def prepare(
    path: str, flavour: str, artifact: str, batch: int
) -> tuple[Callable[[], object], dict[str, Any]]:
    """Build, and tell of it; then nothing is left to run."""
    bundle = open_bundle(Path(path))
    options = BuildOptions(batches=Batches(batch, batch, batch))
    report = build(bundle, bundle.artifact(artifact), Flavour(flavour), options)
    facts = jsonable(report)
    del facts["engine"]  # where the cache lay says nothing
    return lambda: None, {**facts, "batch": batch}


if __name__ == "__main__":
    path, flavour, artifact, batch = sys.argv[1:]
    run_worker(lambda: prepare(path, flavour, artifact, int(batch)))
