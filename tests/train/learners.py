"""A learner on the CPU, and a batch for one step of it."""

from __future__ import annotations

import torch

from resdeploy.images.preprocessing import Preprocessing
from resdeploy.train.config import TrainingConfig
from resdeploy.train.data.dataset import Batch
from resdeploy.train.distributed import Process
from resdeploy.train.initialization import initial_network
from resdeploy.train.step import Learner
from tests.samples import CLASSES, SIZE


def batch_of(images: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        images=torch.randint(
            0, 256, (images, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator
        ),
        labels=torch.randint(0, len(CLASSES), (images,), generator=generator),
        mirrored=torch.zeros(images, dtype=torch.bool),
        positions=tuple(range(images)),
        unreadable=(),
    )


def learner(config: TrainingConfig) -> Learner:
    made = Learner(
        config, initial_network(config, len(CLASSES)), Preprocessing.standard(SIZE),
        Process(0, 1, torch.device("cpu")),
    )  # fmt: skip
    made.train_mode()
    return made
