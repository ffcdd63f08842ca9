"""Loss, confusion matrix and worst mistakes of a network on the validation images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import exp

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resdeploy.errors import DataError
from resdeploy.train.data.dataset import Batch, BatchPlan
from resdeploy.train.distributed import Process

MAX_MISTAKES = 24
VAL_BATCH = 100  # images per validation batch of a process


@dataclass(frozen=True, slots=True)
class Mistake:
    """An image whose predicted class is wrong."""

    position: int
    """Index of the image in the data."""
    label: int
    predicted: int
    probability: float
    """Probability of the predicted class, from 0 to 1."""
    true_probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The results on all images that could be decoded, each counted once."""

    loss: float
    """Mean cross entropy."""
    confusion: npt.NDArray[np.int64]
    """Confusion matrix (K, K): rows are true classes, columns predicted classes."""
    worst: tuple[Mistake, ...]
    """Up to `MAX_MISTAKES` mistakes, sorted by the probability of the true class, lowest first."""
    unreadable: Mapping[int, str]
    """Reasons why this process could not decode images, by their positions."""

    @property
    def accuracy(self) -> float:
        """Return the top-1 accuracy in percent."""
        return 100 * float(self.confusion.trace() / self.confusion.sum())


def validation_plan(process: Process, workers: int = 0) -> BatchPlan:
    """Return the plan of a validation pass: every image once, in order, shared by processes."""
    return BatchPlan(
        batch_size=VAL_BATCH * process.count, shuffle=False, rank=process.rank,
        processes=process.count, workers=workers,
    )  # fmt: skip


@torch.inference_mode()
def evaluate(
    classifier: nn.Module, batches: Iterable[Batch], classes: int, process: Process
) -> Evaluation:
    """Measure loss and accuracy of a network, together with the other processes.

    Args:
        classifier: Model that maps images to logits (N, `classes`).
        batches: Batches of this process, in the order of `validation_plan`.
        classes: Number of classes.
        process: This process.

    Raises:
        DataError: No image can be decoded.
    """
    classifier.eval()
    loss = torch.zeros((), dtype=torch.float64)
    confusion = torch.zeros(classes * classes, dtype=torch.float64)
    mistakes = torch.empty((0, 5), dtype=torch.float64)
    unreadable: dict[int, str] = {}
    for batch in batches:
        unreadable.update(batch.unreadable)
        if not len(batch.labels):
            continue
        moved = batch.to(process.device)
        log_probs = F.log_softmax(classifier(moved.images).double(), 1).cpu()
        true_log_prob = log_probs[torch.arange(len(batch.labels)), batch.labels]
        top_log_prob, predicted = log_probs.max(1)
        loss -= true_log_prob.sum()
        confusion += torch.bincount(batch.labels * classes + predicted, minlength=classes * classes)
        positions = torch.tensor(batch.positions)
        columns = [true_log_prob, positions, batch.labels, predicted, top_log_prob.exp()]
        rows = torch.stack([column.double() for column in columns], 1)
        mistakes = _worst(torch.cat([mistakes, rows[predicted != batch.labels]]))
    confusion = process.total(confusion)
    if not confusion.sum():
        reason = next(iter(unreadable.values()), "")
        raise DataError(
            f"no validation image can be decoded: each {reason}", "add intact images to val"
        )
    padded = F.pad(mistakes, (0, 0, 0, MAX_MISTAKES - len(mistakes)), value=torch.inf)
    worst = _worst(process.gather(padded).flatten(0, 1))
    return Evaluation(
        loss=float(process.total(loss) / confusion.sum()),
        confusion=confusion.reshape(classes, classes).long().numpy(),
        worst=tuple(
            Mistake(int(position), int(label), int(predicted), probability, exp(true_log_prob))
            for true_log_prob, position, label, predicted, probability in worst.tolist()
            if true_log_prob < torch.inf
        ),
        unreadable=unreadable,
    )


def _worst(rows: Tensor) -> Tensor:
    """Return the rows with the lowest probability of the true class; ties are in image order."""
    rows = rows[rows[:, 1].argsort()]
    return rows[rows[:, 0].argsort(stable=True)[:MAX_MISTAKES]]
