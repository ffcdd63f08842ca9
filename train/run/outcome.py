"""The outcome of a run: its best epoch, and the reason why it ended before its last one.

Both depend on the metrics alone, so a resumed run decides as an uninterrupted one does. Source:
Prechelt 1998, "Early stopping - but when?": training longer than the first rise of the validation
error pays, so the patience is a share of the epochs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from resdeploy.tables import plural
from resdeploy.train.config import MIN_PATIENCE, TrainingConfig, learning_rate
from resdeploy.train.data.dataset import DataSplits
from resdeploy.train.doubts import majority_baseline
from resdeploy.train.evaluation import Evaluation
from resdeploy.train.run.folder import EpochMetrics, RunPosition

FINISHED = "it was ended with --finish"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """The course of a finished run, which `model.json` records as `metrics`."""

    accuracy: float
    """Top-1 accuracy of the saved network on the validation images, in percent."""
    epochs: int
    """Epochs that were trained."""
    planned_epochs: int
    best_epoch: int
    """Epoch whose weights are saved: that of the highest accuracy; of equal ones that of the lowest
    loss, then the latest."""
    stopped: str | None
    """Reason for which the run ended before its last epoch; None if it did not."""
    baseline_accuracy: float
    """Accuracy of always predicting the class with the most training images, in percent."""
    train_images: int
    val_images: int
    held_out: bool
    """True if the validation images were held out from the images for training."""
    unreadable: int
    """Number of images that could not be decoded."""
    passed_over: Mapping[str, int]
    """Number of other pictures in the data, by the reason why they are not read."""

    @classmethod
    def of(
        cls, metrics: Sequence[EpochMetrics], config: TrainingConfig, splits: DataSplits,
        accuracy: float, unreadable: int, finish: bool = False,
    ) -> RunOutcome:  # fmt: skip
        """Return the outcome of a run; `finish` ended it, unless there is another reason."""
        asked = FINISHED if finish and len(metrics) < config.epochs else None
        return cls(
            accuracy=accuracy,
            epochs=len(metrics),
            planned_epochs=config.epochs,
            best_epoch=best_epoch(metrics).epoch,
            stopped=reason_to_stop(metrics, config) or asked,
            baseline_accuracy=majority_baseline(splits)[1],
            train_images=len(splits.train.files),
            val_images=len(splits.val.files),
            held_out=splits.held_out,
            unreadable=unreadable,
            passed_over=dict(Counter(splits.train.passed_over) + Counter(splits.val.passed_over)),
        )


def best_epoch(metrics: Sequence[EpochMetrics]) -> EpochMetrics:
    """Return the epoch with the highest accuracy; of equal ones, with the lowest loss."""

    def merit(line: EpochMetrics) -> tuple[float, float, int]:
        loss = line.val_loss if math.isfinite(line.val_loss) else math.inf
        return line.accuracy, -loss, line.epoch

    return max(metrics, key=merit)


def may_improve(best_epoch: int, epochs: int, stopped: str | None) -> bool:
    """Return True if the best epoch is the last one, and no limit was reached."""
    return best_epoch == epochs and stopped in (None, FINISHED)


def epoch_metrics(
    position: RunPosition, evaluation: Evaluation, config: TrainingConfig
) -> EpochMetrics:
    """Return the metrics of the epoch at whose end `position` is."""
    return EpochMetrics(
        epoch=position.epochs_done + 1,
        loss=position.loss / position.images,
        val_loss=evaluation.loss,
        accuracy=evaluation.accuracy,
        lr=learning_rate(config, position.epochs_done + 1),
        images_per_second=position.images / position.seconds,
        seconds=position.seconds,
        waiting=position.waiting_seconds / position.seconds,
    )


def patience_of(config: TrainingConfig) -> int:
    """Return the epochs without improvement after which the run stops; 0: it does not stop."""
    if config.patience is not None:
        return config.patience
    return max(MIN_PATIENCE, -(-config.epochs // 3))


def reason_to_stop(metrics: Sequence[EpochMetrics], config: TrainingConfig) -> str | None:
    """Return why the run ends after the epochs in `metrics`; None if it goes on to its last."""
    if not metrics or metrics[-1].epoch >= config.epochs:
        return None
    target, last = config.target_accuracy, metrics[-1]
    if target is not None and last.accuracy >= target:
        return f"the target accuracy of {target:g} % is reached"
    patience = patience_of(config)
    highest = max(metrics, key=lambda line: line.accuracy)
    finite = (line for line in metrics if math.isfinite(line.val_loss))
    lowest = min(finite, key=lambda line: line.val_loss, default=highest)
    if patience and last.epoch - max(highest.epoch, lowest.epoch) >= patience:
        return f"neither top-1 accuracy nor loss has improved in {plural(patience, 'epoch')}"
    return None
