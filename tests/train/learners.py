"""Helpers for tests: a learner on the CPU, and a batch of random images."""

from __future__ import annotations

import torch

from resdeploy.images.preprocessing import Preprocessing
from resdeploy.train.config import TrainingConfig
from resdeploy.train.data.dataset import Batch
from resdeploy.train.distributed import Process
from resdeploy.train.initialization import initial_network
from resdeploy.train.step import Learner
from tests.samples import CLASSES, SIZE


def make_batch(images: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        images=torch.randint(
            0, 256, (images, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator
        ),
        labels=torch.randint(0, len(CLASSES), (images,), generator=generator),
        mirrored=torch.zeros(images, dtype=torch.bool),
        positions=tuple(range(images)),
        unreadable={},
    )


def make_learner(config: TrainingConfig) -> Learner:
    learner = Learner(
        config, initial_network(config, CLASSES).network, Preprocessing.standard(SIZE),
        Process(0, 1, torch.device("cpu")),
    )  # fmt: skip
    learner.train_mode()
    return learner
