"""How good a network is on images that it was not trained on, and where it is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resdeploy.errors import DataError
from resdeploy.train.data.dataset import Batch, Walk
from resdeploy.train.distributed import Process

BATCH = 100
WORST = 24


@dataclass(frozen=True, slots=True)
class Mistake:
    """An image whose most likely class is not its own."""

    position: int
    """In the data."""
    label: int
    predicted: int
    probability: float
    """Of the class that was predicted, from 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Of all images that could be decoded, each counted once."""

    loss: float
    """Mean cross entropy."""
    confusion: npt.NDArray[np.int64]
    """Shape (K, K): images of the row's class that were taken for the column's."""
    worst: tuple[Mistake, ...]
    """Up to `WORST` mistakes, those with the lowest probability of the right class first."""
    unreadable: tuple[int, ...]
    """Positions that this process could not decode."""

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * float(self.confusion.trace() / self.confusion.sum())


def validation_walk(process: Process, workers: int = 0) -> Walk:
    """Each image once, in order; every process takes its part."""
    return Walk(
        batch_size=BATCH * process.count, shuffle=False, rank=process.rank,
        processes=process.count, workers=workers,
    )  # fmt: skip


@torch.inference_mode()
def evaluate(
    classifier: nn.Module, batches: Iterable[Batch], classes: int, process: Process
) -> Evaluation:
    """Measure a network.

    Args:
        classifier: Images to logits (N, `classes`).
        batches: All that this process takes, as `validation_walk` says.
        classes: How many there are.
        process: This one.

    Raises:
        DataError: no image can be decoded.
    """
    classifier.eval()
    loss = torch.zeros((), dtype=torch.float64)
    confusion = torch.zeros(classes * classes, dtype=torch.float64)
    mistakes = torch.empty((0, 5), dtype=torch.float64)
    unreadable: list[int] = []
    for batch in batches:
        unreadable += batch.unreadable
        if not len(batch.labels):
            continue
        here = batch.to(process.device)
        log_likely = F.log_softmax(classifier(here.images).double(), 1).cpu()
        right = log_likely[torch.arange(len(batch.labels)), batch.labels]
        likely, predicted = log_likely.max(1)
        loss -= right.sum()
        confusion += torch.bincount(batch.labels * classes + predicted, minlength=classes * classes)
        rows = [right, torch.tensor(batch.positions), batch.labels, predicted, likely.exp()]
        table = torch.stack([row.double() for row in rows], 1)
        mistakes = _worst(torch.cat([mistakes, table[predicted != batch.labels]]))
    confusion = process.total(confusion)
    if not confusion.sum():
        raise DataError("not one validation image can be decoded", "add intact images to val")
    padded = F.pad(mistakes, (0, 0, 0, WORST - len(mistakes)), value=torch.inf)
    worst = _worst(process.gather(padded).flatten(0, 1))
    return Evaluation(
        loss=float(process.total(loss) / confusion.sum()),
        confusion=confusion.reshape(classes, classes).long().numpy(),
        worst=tuple(
            Mistake(int(position), int(label), int(predicted), probability)
            for right, position, label, predicted, probability in worst.tolist()
            if right < torch.inf
        ),
        unreadable=tuple(unreadable),
    )


def _worst(rows: Tensor) -> Tensor:
    """The rows with the least likely right class; of equal ones those that come first."""
    rows = rows[rows[:, 1].argsort()]
    return rows[rows[:, 0].argsort(stable=True)[:WORST]]
