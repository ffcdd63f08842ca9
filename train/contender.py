"""PyTorch eager as a benchmark's contender: `python -m resdeploy.train.contender`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from resdeploy.bundle import open_bundle
from resdeploy.contender import answer
from resdeploy.errors import CheckpointError, needs_extra


def prepare(
    path: str, checkpoint: str, batch: int, threads: int
) -> tuple[Callable[[], object], dict[str, Any]]:
    """Build the bundle's network in PyTorch and return what runs it on golden images.

    Args:
        path: The bundle.
        checkpoint: Weights to use; empty for those that the bundle was exported from, and random
            ones where these are gone (their values do not change the time).
        batch: Images in one run.
        threads: Threads for one run.
    """
    with needs_extra():
        import torch

    from resdeploy.train.architecture import Architecture
    from resdeploy.train.checkpoint import load_checkpoint
    from resdeploy.train.model import Classifier, ResNet

    bundle = open_bundle(Path(path))
    preprocessing = bundle.manifest.preprocessing
    model = bundle.manifest.model
    architecture = Architecture.from_json(model)
    weights = checkpoint or str(model.get("source"))
    try:
        loaded = load_checkpoint(Path(weights))
        if loaded.architecture != architecture:
            raise CheckpointError(
                f"{weights} is a {loaded.architecture.name} of {loaded.architecture.classes} "
                f"classes, the bundle holds a {architecture.name} of {architecture.classes}",
                "name the checkpoint that the bundle was exported from with --baseline",
            )
        if not checkpoint and loaded.sha256 != model.get("source_sha256"):
            raise CheckpointError(f"{weights} is not what the bundle was exported from")
        network = loaded.network()
    except CheckpointError:
        if checkpoint:
            raise
        network, weights = ResNet(architecture).eval(), "random"
    torch.set_num_threads(threads)
    classifier = Classifier(network, preprocessing.mean, preprocessing.std).eval()
    golden = bundle.golden().images
    images = torch.from_numpy(golden[np.arange(batch) % len(golden)])

    @torch.inference_mode()
    def run() -> object:
        return classifier(images)

    return run, {"weights": weights}


if __name__ == "__main__":
    path, checkpoint, batch, threads = sys.argv[1:]
    answer(lambda: prepare(path, checkpoint, int(batch), int(threads)))
