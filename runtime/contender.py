"""A backend of the runtime as a benchmark's contender: `python -m resdeploy.runtime.contender`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from resdeploy.bundle import open_bundle
from resdeploy.contender import answer
from resdeploy.runtime.backend import Batches, Opening
from resdeploy.runtime.selection import candidates


def prepare(
    path: str, backend: str, artifact: str, batch: int, threads: int
) -> tuple[Callable[[], object], dict[str, Any]]:
    """Load one artifact and return what runs it on a batch of golden images."""
    bundle = open_bundle(Path(path))
    (candidate,) = [c for c in candidates(bundle, backend) if c.artifact.name == artifact]
    opened = candidate.open(bundle, Opening(threads=threads, batches=Batches(batch, batch, batch)))
    images = bundle.golden().images
    images = images[np.arange(batch) % len(images)]
    return lambda: opened.run(images), {}


if __name__ == "__main__":
    path, backend, artifact, batch, threads = sys.argv[1:]
    answer(lambda: prepare(path, backend, artifact, int(batch), int(threads)))
