"""A training run, from its settings to its folder; a step is in `step.py`."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resdeploy.errors import DataError, TrainingError
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.progress import Progress, silent
from resdeploy.results.provenance import collect_provenance
from resdeploy.storage import refuse_existing
from resdeploy.train.config import DIGITS, TrainingConfig, learning_rate
from resdeploy.train.data.augment import Augmentation
from resdeploy.train.data.dataset import (
    Batch,
    EpochImages,
    Walk,
    default_workers,
    read_splits,
    run_batches,
)
from resdeploy.train.data.digits import digits_folder
from resdeploy.train.distributed import Process, joined_processes
from resdeploy.train.evaluation import Evaluation, evaluate, validation_walk
from resdeploy.train.initialization import balanced_weights, initial_network
from resdeploy.train.qat.distillation import Teacher
from resdeploy.train.qat.network import QuantizedStart
from resdeploy.train.run import folder as runs
from resdeploy.train.run.curves import draw_curves
from resdeploy.train.run.progress_table import epoch_line, header_line
from resdeploy.train.run.report import write_report
from resdeploy.train.run.tensorboard import event_writer
from resdeploy.train.step import Learner

logger = logging.getLogger(__name__)

GPU_STEPS = 20  # between looks at the loss, for which a GPU has to be waited for
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
    config: TrainingConfig,
    folder: Path,
    *,
    start: QuantizedStart | None = None,
    device: Mapping[str, Any] | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> TrainingResult:
    """Train a network and write a run folder; under `torchrun`, together with other processes.

    Args:
        config: Settings.
        folder: Where the run is written.
        start: With `config.qat`, what it starts from; `export.quantized_training` makes it.
        device: What this machine is, for the record; `runtime.device` describes it.
        force: Replace a run that is there.
        progress: Told of each step.

    Raises:
        OutputError: `folder` exists already and `force` is not set, or cannot be written.
        DataError, CheckpointError: the data or the initial weights cannot be used.
        TrainingError: the loss is no longer a number, or processes and batch do not fit.
    """
    with joined_processes() as process:
        if process.writes:
            refuse_existing(folder, force=force, marker=runs.STATE_JSON)
        trainer = _Trainer(config, folder, process, progress, start, device)
        if process.writes:
            runs.begin(folder, config.to_json())
        return trainer.train()


def resume(
    folder: Path, *, device: Mapping[str, Any] | None = None, progress: Progress = silent
) -> TrainingResult:
    """Go on with an interrupted run, with its own settings, from its newest state.

    Where `torchrun` started several processes, all of them read the folder.

    Raises:
        TrainingError: the folder holds no run that can be resumed.
        DataError, OutputError: as for `train`.
    """
    try:
        config = TrainingConfig.from_json(runs.load_config(folder))
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{folder / runs.STATE_JSON} is damaged", "start a new run") from error
    with joined_processes() as process:
        # Without a state it begins again; but what INT8 started from stands in the state alone.
        state = None
        if config.qat or (folder / runs.STATE_FILE).exists():
            state = runs.load_state(folder)
        start = state.quantized_start() if config.qat and state else None
        trainer = _Trainer(config, folder, process, progress, start, device)
        if state is not None:
            trainer.restore(state, runs.load_metrics(folder))
        process.gather(torch.zeros(()))  # nobody writes before all have read
        if process.writes:
            runs.sweep(folder)
        return trainer.train()


def default_folder(data: str) -> Path:
    """`runs/NAME-DATE-TIME`, after the data's name."""
    return runs.RUNS / f"{Path(data).resolve().name}-{time.strftime('%Y%m%d-%H%M%S')}"


class _Trainer:
    """The parts of a run, put together."""

    def __init__(
        self,
        config: TrainingConfig,
        folder: Path,
        process: Process,
        progress: Progress,
        start: QuantizedStart | None,
        device: Mapping[str, Any] | None,
    ) -> None:
        self.config = config
        self.device = device
        self.folder = folder
        self.process = process
        self.progress = progress if process.writes else silent
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
        network = initial_network(config, len(self.splits.train.classes))
        teacher = None
        if config.distillation:
            teacher = Teacher(
                copy.deepcopy(network), self.preprocessing, mirrors=self.augmentation.flip
            )
        if start is not None and start.weights is not None:
            network.load_state_dict(dict(start.weights))
        self.learner = Learner(
            config,
            network,
            self.preprocessing,
            process,
            balanced_weights(self.splits.train) if config.class_weights else None,
            start,
            teacher,
        )
        self.reads = start.reads if start is not None else {}
        self.workers = default_workers() if config.workers is None else config.workers
        self.val_walk = validation_walk(process, self.workers)
        self.place = runs.Place()
        self.metrics: list[runs.EpochMetrics] = []
        self.unreadable: tuple[set[int], set[int]] = (set(), set())  # of train and of val

    def restore(self, state: runs.TrainingState, metrics: list[runs.EpochMetrics]) -> None:
        self.learner.restore(state.model, state.momentum, state.average)
        self.place = state.place
        self.metrics = metrics[: state.place.epochs_done]
        self._say(
            "resuming after %d epochs and %d steps", self.place.epochs_done, self.place.steps_done
        )

    def train(self) -> TrainingResult:
        start = time.perf_counter()
        config = self.config
        evaluation = None
        note = None
        if config.tensorboard and self.process.writes:
            note = event_writer(self.folder, self.place.epochs_done)
        if config.qat and self.process.writes and self.place == runs.Place():
            self._save_state()
        train_batches, val_batches = self._batches()
        self._say("%s", header_line())
        try:
            while self.place.epochs_done < config.epochs:
                self._train_epoch(train_batches)
                evaluation = self._evaluate(val_batches)
                self.metrics.append(self._epoch_metrics(evaluation))
                self.place = runs.Place(epochs_done=self.place.epochs_done + 1)
                if self.process.writes:
                    runs.save_metrics(self.folder, self.metrics)
                    self._save_state()
                if note is not None:
                    note(self.metrics[-1])
                self._say("%s", epoch_line(self.metrics, config.epochs))
        except KeyboardInterrupt:
            self._say("interrupted; resdeploy train --resume %s goes on", self.folder)
            raise
        # Of a run that had come to its end before:
        evaluation = evaluation or self._evaluate(val_batches)
        unreadable = self._unreadable_names()
        if self.process.writes:
            self._finish(evaluation, unreadable)
        rates = sorted(line.images_per_second for line in self.metrics)
        return TrainingResult(
            run=self.folder,
            accuracy=evaluation.accuracy,
            images_per_second=rates[len(rates) // 2],
            epochs=config.epochs,
            unreadable=len(unreadable),
            seconds=time.perf_counter() - start,
        )

    def _finish(self, evaluation: Evaluation, unreadable: Sequence[str]) -> None:
        """Write what a finished run holds; `model.json` and the link to it come last."""
        config = self.config
        provenance = collect_provenance(self.device)
        draw_curves(self.metrics, self.folder / runs.CURVES)
        if unreadable:
            runs.save_unreadable(self.folder, unreadable)
        write_report(
            self.folder, config, self.metrics, evaluation, self.splits.val, self.preprocessing,
            unreadable, provenance,
        )  # fmt: skip
        runs.save_model(
            self.folder,
            self.learner.kept,
            labels=self.splits.train.classes,
            preprocessing=self.preprocessing,
            data=config.data if config.data == DIGITS else str(Path(config.data).resolve()),
            config=config.to_json() | {"processes": self.process.count},
            metrics={"accuracy": evaluation.accuracy, "unreadable_images": len(unreadable)},
            learned=self.learner.quantized.learned() if self.learner.quantized else None,
            provenance=provenance,
        )
        runs.point_latest_to(self.folder)

    def _batches(self) -> tuple[Iterator[Batch], Iterator[Batch]]:
        """What is left of the run to train on, and as many walks over the validation images."""
        config, process, place = self.config, self.process, self.place
        left = range(place.epochs_done, config.epochs)
        train = [
            EpochImages(
                self.splits.train, self.preprocessing, self.augmentation,
                seed=config.seed, epoch=epoch,
            )
            for epoch in left
        ]  # fmt: skip
        walk = Walk(
            batch_size=config.batch_size, shuffle=True, start=place.steps_done,
            rank=process.rank, processes=process.count, workers=self.workers,
        )  # fmt: skip
        val = [EpochImages(self.splits.val, self.preprocessing)] * max(1, len(left))
        return run_batches(train, walk), run_batches(val, self.val_walk)

    def _train_epoch(self, batches: Iterator[Batch]) -> None:
        """Take the steps of an epoch that are not done yet."""
        config, process, epoch = self.config, self.process, self.place.epochs_done
        images = len(self.splits.train.files)
        steps = max(1, images // config.batch_size)
        self.learner.train_mode()
        saved = clock = time.perf_counter()
        pending: list[Tensor] = []
        waiting = 0.0
        with self.progress(f"epoch {epoch + 1}", images) as advance:
            advance(self.place.steps_done * config.batch_size)
            for step in range(self.place.steps_done, steps):
                asked = time.perf_counter()
                batch = next(batches)
                waiting += time.perf_counter() - asked
                self._note_unreadable(0, batch.unreadable)
                seeds = [config.seed, epoch, step, process.rank, MIXING]
                loss = self.learner.step(
                    batch,
                    learning_rate(config, epoch + step / steps),
                    np.random.default_rng(seeds),
                )
                pending.append(loss)
                if process.device.type == "cuda" and len(pending) < GPU_STEPS < steps - step:
                    continue
                now = time.perf_counter()
                self._count(pending, now - clock, waiting)
                advance(len(pending) * config.batch_size)
                pending, waiting, clock = [], 0.0, now
                if process.writes and now - saved >= 60 * config.save_minutes:
                    self._save_state()
                    saved = now
        if not self.place.images:
            raise DataError("not one batch of training images can be used", "add intact images")

    def _count(self, steps: list[Tensor], seconds: float, waiting: float) -> None:
        """Add steps to the epoch's account; all processes come here after the same steps."""
        loss, images = self.place.loss, self.place.images
        for index, (share, seen) in enumerate(self.process.total(torch.stack(steps)).tolist()):
            if not math.isfinite(share):
                self._fail(share, self.place.steps_done + index + 1)
            loss += share * seen
            images += int(seen)
        self.place = replace(
            self.place,
            steps_done=self.place.steps_done + len(steps),
            loss=loss,
            images=images,
            seconds=self.place.seconds + seconds,
            waiting=self.place.waiting + waiting,
        )

    def _fail(self, loss: float, step: int) -> None:
        path = self.folder / runs.STATE_FILE
        good = runs.load_state(self.folder).place if path.exists() else None
        raise TrainingError(
            f"the loss is {loss} in epoch {self.place.epochs_done + 1}, step {step}"
            + (
                f"; the last good state is that after {good.epochs_done} epochs and "
                f"{good.steps_done} steps, in {path}"
                if good
                else ", before the first state was saved"
            ),
            f"start again with a lower --lr; it was {self.config.lr:g}",
        )

    def _epoch_metrics(self, evaluation: Evaluation) -> runs.EpochMetrics:
        place = self.place
        return runs.EpochMetrics(
            epoch=place.epochs_done + 1,
            loss=place.loss / place.images,
            val_loss=evaluation.loss,
            accuracy=evaluation.accuracy,
            lr=learning_rate(self.config, place.epochs_done + 1),
            images_per_second=place.images / place.seconds,
            seconds=place.seconds,
            waiting=place.waiting / place.seconds,
        )

    def _evaluate(self, batches: Iterator[Batch]) -> Evaluation:
        images = self.splits.val
        mine = islice(batches, math.ceil(len(images.files) / self.val_walk.batch_size))
        evaluation = evaluate(self.learner.measured, mine, len(images.classes), self.process)
        self._note_unreadable(1, evaluation.unreadable)
        return evaluation

    def _save_state(self) -> None:
        model, momentum, average = self.learner.state()
        runs.save_state(
            self.folder,
            runs.TrainingState(
                place=self.place,
                model=model,
                momentum=momentum,
                average=average,
                reads=self.reads,
            ),
        )

    def _note_unreadable(self, split: int, positions: Sequence[int]) -> None:
        files = (self.splits.train, self.splits.val)[split].files
        for position in set(positions) - self.unreadable[split]:
            logger.warning("skipped: %s cannot be decoded", files[position])
        self.unreadable[split].update(positions)

    def _unreadable_names(self) -> list[str]:
        """What all processes together could not decode."""
        names = []
        for images, positions in zip((self.splits.train, self.splits.val), self.unreadable):
            mask = torch.zeros(len(images.files))
            mask[sorted(positions)] = 1
            found = self.process.total(mask).nonzero().flatten().tolist()
            names += [str(images.files[position]) for position in found]
        return names

    def _say(self, text: str, *values: object) -> None:
        if self.process.writes:
            logger.info(text, *values)
