"""The training loop: SGD with momentum, by the settings of `config.py`.

Sources: He et al. 2015, arXiv:1512.03385, section 3.4 (SGD, momentum 0.9); Szegedy et al. 2015,
arXiv:1512.00567, section 7 (label smoothing); the schedule's are in `config.py`.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from resdeploy.cpu import read_cpu
from resdeploy.errors import DataError, TrainingError
from resdeploy.imagefolder import LabelledImages
from resdeploy.preprocessing import Preprocessing
from resdeploy.progress import Progress, silent
from resdeploy.storage import refuse_existing
from resdeploy.train import run as runs
from resdeploy.train.augment import Augmentation
from resdeploy.train.averaging import WeightAverage
from resdeploy.train.checkpoint import MODEL_JSON
from resdeploy.train.config import DIGITS, TrainingConfig, learning_rate
from resdeploy.train.curves import draw_curves
from resdeploy.train.data import (
    EpochImages,
    epoch_batches,
    read_splits,
)
from resdeploy.train.digits import digits_folder
from resdeploy.train.mixing import mix
from resdeploy.train.model import Classifier
from resdeploy.train.start import balanced_weights, initial_network, make_optimizer

logger = logging.getLogger(__name__)

EVALUATION_BATCH = 100
MIXING = 1  # sets the randomness of mixing apart from that of the augmentation


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What `resdeploy train` reports."""

    run: Path
    accuracy: float
    """Of the last epoch on `val`, in percent."""
    images_per_second: float
    """Median over the epochs, training only."""
    epochs: int
    unreadable: int
    """Images that could not be decoded and were left out."""
    seconds: float


def train(
    config: TrainingConfig, folder: Path, *, force: bool = False, progress: Progress = silent
) -> TrainingResult:
    """Train a network and write a run folder.

    Raises:
        OutputError: `folder` exists already and `force` is not set, or cannot be written.
        DataError, CheckpointError: the data or the initial weights cannot be used.
        TrainingError: the loss is no longer a number.
    """
    refuse_existing(folder, force=force, sign=runs.STATE_JSON)
    trainer = _Trainer(config, folder, progress)
    for leftover in (MODEL_JSON, runs.STATE_FILE, runs.METRICS):
        (folder / leftover).unlink(missing_ok=True)
    runs.save_config(folder, config.to_json())
    return trainer.train()


def resume(folder: Path, *, progress: Progress = silent) -> TrainingResult:
    """Go on with an interrupted run, with its own settings, after its last whole epoch.

    Raises:
        TrainingError: the folder holds no run that can be resumed.
        DataError, OutputError: as for `train`.
    """
    try:
        config = TrainingConfig.from_json(runs.load_config(folder))
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{folder / runs.STATE_JSON} is damaged", "start a new run") from error
    trainer = _Trainer(config, folder, progress)
    if (folder / runs.STATE_FILE).exists():
        trainer.restore(runs.load_state(folder), runs.load_metrics(folder))
    return trainer.train()


def default_folder(data: str) -> Path:
    """`runs/NAME-DATE-TIME`, after the data's name."""
    return runs.RUNS / f"{Path(data).resolve().name}-{time.strftime('%Y%m%d-%H%M%S')}"


class _Trainer:
    """The parts of a run, put together."""

    def __init__(self, config: TrainingConfig, folder: Path, progress: Progress) -> None:
        self.config = config
        self.folder = folder
        self.progress = progress
        self.preprocessing = Preprocessing.standard(config.image_size)
        is_digits = config.data == DIGITS
        self.splits = read_splits(digits_folder() if is_digits else Path(config.data))
        # A digit fills its picture: cropped hard or mirrored, it becomes another one or none.
        self.augmentation = Augmentation(
            flip=not is_digits if config.flip is None else config.flip,
            min_area=config.min_area or (0.85 if is_digits else 0.35),
            crop=config.crop,
            randaugment=config.randaugment,
        )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = initial_network(config, len(self.splits.train.classes))
        # channels_last is the layout that convolution libraries compute in.
        self.classifier = Classifier(
            self.network.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
            self.preprocessing.mean,
            self.preprocessing.std,
        ).to(self.device)
        self.average = WeightAverage(self.classifier, config.ema) if config.ema else None
        self.class_weights = (
            balanced_weights(self.splits.train).to(self.device) if config.class_weights else None
        )
        self.optimizer = make_optimizer(self.network, config)
        self.epochs_done = 0
        self.metrics: list[runs.EpochMetrics] = []
        self.unreadable: set[Path] = set()

    def restore(self, state: runs.TrainingState, metrics: list[runs.EpochMetrics]) -> None:
        self.network.load_state_dict(state.model)
        if self.average is not None:
            self.average.restore(state.average)
        parameters = dict(self.network.named_parameters())
        for name, buffer in state.momentum.items():
            self.optimizer.state[parameters[name]]["momentum_buffer"] = buffer.to(self.device)
        self.epochs_done = state.epochs_done
        self.metrics = metrics[: state.epochs_done]
        logger.info("resuming after epoch %d", self.epochs_done)

    def train(self) -> TrainingResult:
        start = time.perf_counter()
        config = self.config
        while self.epochs_done < config.epochs:
            self.metrics.append(self._epoch(self.epochs_done))
            self.epochs_done += 1
            self._save_epoch()
            latest = self.metrics[-1]
            logger.info(
                "epoch %d/%d  loss %.3f  accuracy %.2f %%  %.0f images/s",
                self.epochs_done, config.epochs, latest.loss, latest.accuracy,
                latest.images_per_second,
            )  # fmt: skip
        rates = sorted(line.images_per_second for line in self.metrics)
        result = TrainingResult(
            run=self.folder,
            accuracy=self.metrics[-1].accuracy,
            images_per_second=rates[len(rates) // 2],
            epochs=config.epochs,
            unreadable=len(self.unreadable),
            seconds=time.perf_counter() - start,
        )
        runs.save_model(
            self.folder,
            self._deployed.network,
            labels=self.splits.train.classes,
            preprocessing=self.preprocessing,
            data=config.data if config.data == DIGITS else str(Path(config.data).resolve()),
            config=config.to_json(),
            metrics={"accuracy": result.accuracy, "unreadable_images": len(self.unreadable)},
        )
        runs.point_latest_to(self.folder)
        draw_curves(self.metrics, self.folder / runs.CURVES)
        return result

    def _epoch(self, epoch: int) -> runs.EpochMetrics:
        config = self.config
        images = EpochImages(
            self.splits.train, self.preprocessing, self.augmentation, seed=config.seed, epoch=epoch
        )
        steps = max(1, len(images) // config.batch_size)
        total_loss, seen = 0.0, 0
        start = time.perf_counter()
        self.classifier.train()
        if config.freeze:
            self.network.eval()  # the norms' statistics belong to the features
        with self.progress(f"epoch {epoch + 1}", len(images)) as advance:
            batches = epoch_batches(
                images, config.batch_size, shuffle=True, workers=self._workers()
            )
            for step, batch in enumerate(batches):
                self._note_unreadable(self.splits.train, batch.unreadable)
                if len(batch.labels) < 2:  # batch norm needs two
                    continue
                lr = learning_rate(config, epoch + step / steps)
                generator = np.random.default_rng([config.seed, epoch, step, MIXING])
                loss = self._step(batch.images, batch.labels, lr, generator)
                if not math.isfinite(loss):
                    raise TrainingError(
                        f"the loss is {loss} in epoch {epoch + 1}, step {step + 1}",
                        f"start again with a lower --lr; it was {config.lr:g}",
                    )
                total_loss += loss * len(batch.labels)
                seen += len(batch.labels)
                advance(len(batch.labels))
        if not seen:
            raise DataError("not one batch of training images can be used", "add intact images")
        seconds = time.perf_counter() - start
        val_loss, accuracy = self._evaluate()
        return runs.EpochMetrics(
            epoch=epoch + 1,
            loss=total_loss / seen,
            val_loss=val_loss,
            accuracy=accuracy,
            lr=learning_rate(config, epoch + 1),
            images_per_second=seen / seconds,
            seconds=seconds,
        )

    def _step(
        self, images: Tensor, labels: Tensor, lr: float, generator: np.random.Generator
    ) -> float:
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        mixed = mix(
            images.to(self.device), labels.to(self.device), config.mixup, config.cutmix, generator
        )
        with self._autocast():
            logits = self.classifier(mixed.images)
        loss = mixed.share * self._loss(logits, mixed.labels)
        if mixed.share < 1:
            loss = loss + (1 - mixed.share) * self._loss(logits, mixed.others)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.classifier)
        return loss.item()

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(
            logits.float(),
            labels,
            weight=self.class_weights,
            label_smoothing=self.config.label_smoothing,
        )

    @property
    def _deployed(self) -> Classifier:
        """What is measured and kept: the average where there is one."""
        return self.classifier if self.average is None else self.average.classifier

    @torch.inference_mode()
    def _evaluate(self) -> tuple[float, float]:
        """Mean loss and accuracy in percent on `val`, in FP32."""
        classifier = self._deployed.eval()
        loss, right, seen = 0.0, 0, 0
        images = EpochImages(self.splits.val, self.preprocessing)
        for batch in epoch_batches(
            images, EVALUATION_BATCH, shuffle=False, workers=self._workers()
        ):
            self._note_unreadable(self.splits.val, batch.unreadable)
            if len(batch.labels):
                labels = batch.labels.to(self.device)
                logits = classifier(batch.images.to(self.device))
                loss += F.cross_entropy(logits, labels, reduction="sum").item()
                right += int((logits.argmax(1) == labels).sum())
                seen += len(labels)
        if not seen:
            raise DataError("not one validation image can be decoded", "add intact images to val")
        return loss / seen, 100 * right / seen

    def _save_epoch(self) -> None:
        momentum = {
            name: self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in self.network.named_parameters()
            if self.optimizer.state[parameter].get("momentum_buffer") is not None
        }
        runs.save_metrics(self.folder, self.metrics)
        state = runs.TrainingState(
            epochs_done=self.epochs_done,
            model=self.network.state_dict(),
            momentum=momentum,
            average=self._deployed.network.state_dict() if self.average is not None else {},
        )
        runs.save_state(self.folder, state)

    def _note_unreadable(self, images: LabelledImages, positions: tuple[int, ...]) -> None:
        for path in {images.paths[position] for position in positions} - self.unreadable:
            logger.warning("skipped: %s cannot be decoded", path)
            self.unreadable.add(path)

    def _workers(self) -> int:
        if self.config.workers is not None:
            return self.config.workers
        return 4 if self.device.type == "cuda" else 0

    def _autocast(self) -> AbstractContextManager[Any]:
        fast = (
            torch.cuda.is_bf16_supported()
            if self.device.type == "cuda"
            else read_cpu().has_fast_bf16
        )
        return torch.autocast(self.device.type, torch.bfloat16) if fast else nullcontext()
