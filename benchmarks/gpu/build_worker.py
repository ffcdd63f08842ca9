"""The worker that builds one engine: `python -m benchmarks.gpu.build_worker`.

It is a separate process, so that a builder that crashes or leaks does not affect the benchmark.
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
    """Build an engine and return its facts, with a function that does nothing."""
    bundle = open_bundle(Path(path))
    options = BuildOptions(batches=Batches(batch, batch, batch))
    report = build(bundle, bundle.artifact(artifact), Flavour(flavour), options)
    facts = jsonable(report)
    del facts["engine"]  # the path in the cache is meaningless
    return lambda: None, {**facts, "batch": batch}


if __name__ == "__main__":
    path, flavour, artifact, batch = sys.argv[1:]
    run_worker(lambda: prepare(path, flavour, artifact, int(batch)))
