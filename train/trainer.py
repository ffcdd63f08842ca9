"""The training loop: it reads the data, trains epoch by epoch and writes the run folder."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import median_high

import numpy as np
import torch
from torch import Tensor

from resdeploy.errors import DataError, TrainingError
from resdeploy.filesystem import refuse_existing, write_file
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.images.skipped import SkippedImages
from resdeploy.machine.device import read_device
from resdeploy.progress import Progress, silent
from resdeploy.result_files.provenance import collect_provenance
from resdeploy.train.config import DIGITS, TrainingConfig, learning_rate
from resdeploy.train.data.augment import Augmentation
from resdeploy.train.data.dataset import (
    Batch,
    BatchPlan,
    EpochImages,
    default_workers,
    load_batches,
    read_splits,
)
from resdeploy.train.data.synthetic_digits import digits_folder
from resdeploy.train.distributed import Process, connect_processes
from resdeploy.train.evaluation import Evaluation, evaluate, validation_plan
from resdeploy.train.initialization import balanced_weights, initial_network
from resdeploy.train.qat.distillation import Teacher
from resdeploy.train.qat.network import QuantizedStart
from resdeploy.train.run import folder as run_folder
from resdeploy.train.run.curves import draw_curves
from resdeploy.train.run.folder import EpochMetrics, RunPosition, TrainingState
from resdeploy.train.run.progress_table import HEADER, epoch_line
from resdeploy.train.run.report import write_report
from resdeploy.train.run.tensorboard import event_writer
from resdeploy.train.step import Learner

logger = logging.getLogger(__name__)

GPU_STEPS = 20  # steps between reads of the loss, because each read waits for the GPU
MIXING_STREAM = 1  # last part of the seed, so that mixing and augmentation draw other numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """The result of a training run, as `resdeploy train` reports it."""

    run: Path
    accuracy: float
    """Top-1 accuracy on `val` after the last epoch, in percent."""
    images_per_second: float
    """Median training throughput of the epochs, without validation."""
    epochs: int
    unreadable: int
    """Number of images that could not be decoded."""
    passed_over: Mapping[str, int]
    """Number of other pictures in the data, by the reason why they are not read."""
    seconds: float
    """Duration of this call."""


def train(
    config: TrainingConfig,
    folder: Path,
    *,
    start: QuantizedStart | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> TrainingResult:
    """Train a network and write a run folder; under `torchrun`, share the work between processes.

    Args:
        config: Settings of the run.
        folder: Run folder to write.
        start: Initial weights and scales for `config.qat`; see `quantized_start`.
        force: True to replace an existing run.
        progress: Receiver of the number of images done.

    Raises:
        OutputError: `folder` exists and `force` is not set, or it cannot be written.
        DataError: The images cannot be used.
        CheckpointError: The initial weights cannot be used.
        TrainingError: The loss is NaN or infinite, or the batch is too small for the processes.
    """
    with connect_processes() as process:
        if process.is_main:
            refuse_existing(folder, force=force, marker=run_folder.STATE_JSON)
        trainer = _Trainer(config, folder, process, progress, start)
        if process.is_main:
            run_folder.begin_run(folder, config)
        return trainer.train()


def resume(folder: Path, *, progress: Progress = silent) -> TrainingResult:
    """Continue an interrupted run from its newest state, with the settings stored in its folder.

    Under `torchrun` every process reads the folder.

    Raises:
        TrainingError: The folder holds no run that can be resumed.
        DataError: The images cannot be used.
        OutputError: The folder cannot be written.
    """
    config = run_folder.load_config(folder)
    with connect_processes() as process:
        # A run without a state starts again, but not with QAT, as only the state holds the scales.
        state = None
        if config.qat or (folder / run_folder.STATE_FILE).exists():
            state = run_folder.load_state(folder)
        start = state.quantized_start() if config.qat and state else None
        trainer = _Trainer(config, folder, process, progress, start)
        if state is not None:
            trainer.restore(state, run_folder.load_metrics(folder))
        process.gather(torch.zeros(()))  # waits until all processes have read the folder
        if process.is_main:
            for path in folder.glob(".*.tmp-*"):  # a killed process may have left some
                path.unlink(missing_ok=True)
        return trainer.train()


def default_folder(data: str) -> Path:
    """Return `runs/NAME-DATE-TIME`, where NAME is the name of the data folder."""
    return run_folder.RUNS / f"{Path(data).resolve().name}-{time.strftime('%Y%m%d-%H%M%S')}"


class _Trainer:
    """The objects and counters of one training run."""

    def __init__(
        self,
        config: TrainingConfig,
        folder: Path,
        process: Process,
        progress: Progress,
        start: QuantizedStart | None,
    ) -> None:
        self.config = config
        self.folder = folder
        self.process = process
        self.progress = progress if process.is_main else silent
        self.preprocessing = Preprocessing.standard(config.image_size)
        is_digits = config.data == DIGITS
        self.splits = read_splits(digits_folder() if is_digits else Path(config.data))
        # A digit fills its image, so mirroring or a small crop can change what it shows.
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
                copy.deepcopy(network), self.preprocessing, average_mirrored=self.augmentation.flip
            )
        if start is not None and start.weights is not None:
            network.load_state_dict(dict(start.weights))
        class_weights = balanced_weights(self.splits.train) if config.class_weights else None
        self.learner = Learner(
            config, network, self.preprocessing, process, class_weights, start, teacher
        )
        self.quantized_inputs = start.quantized_inputs if start is not None else {}
        self.workers = default_workers() if config.workers is None else config.workers
        self.val_plan = validation_plan(process, self.workers)
        self.position = RunPosition()
        self.metrics: list[EpochMetrics] = []
        # Positions of the images in each split that this process could not decode.
        self.unreadable: dict[str, set[int]] = {"train": set(), "val": set()}
        self.skipped = SkippedImages()
        counts = Counter(self.splits.train.passed_over)
        self.passed_over = dict(counts + Counter(self.splits.val.passed_over))

    def restore(self, state: TrainingState, metrics: list[EpochMetrics]) -> None:
        self.learner.restore(state.model, state.momentum, state.average)
        self.position = state.position
        done, steps = self.position.epochs_done, self.position.steps_done
        self.metrics = metrics[:done]
        self._log("resuming after %d epochs and %d steps", done, steps)

    def train(self) -> TrainingResult:
        start = time.perf_counter()
        config = self.config
        evaluation = None
        write_event = None
        if config.tensorboard and self.process.is_main:
            write_event = event_writer(self.folder, self.position.epochs_done)
        if config.qat and self.process.is_main and self.position == RunPosition():
            self._save_state()
        train_batches, val_batches = self._batches()
        self._log("%s", HEADER)
        try:
            while self.position.epochs_done < config.epochs:
                self._train_epoch(train_batches)
                evaluation = self._evaluate(val_batches)
                self.metrics.append(self._epoch_metrics(evaluation))
                self.position = RunPosition(epochs_done=self.position.epochs_done + 1)
                if self.process.is_main:
                    run_folder.save_metrics(self.folder, self.metrics)
                    self._save_state()
                if write_event is not None:
                    write_event(self.metrics[-1])
                self._log("%s", epoch_line(self.metrics, config.epochs))
        except KeyboardInterrupt:
            self._log("interrupted; to continue: resdeploy train --resume %s", self.folder)
            raise
        # A resumed run may have finished all its epochs before.
        evaluation = evaluation or self._evaluate(val_batches)
        unreadable = self._unreadable_names()
        self.skipped.report()
        if self.process.is_main:
            self._finish(evaluation, unreadable)
        return TrainingResult(
            run=self.folder,
            accuracy=evaluation.accuracy,
            images_per_second=median_high(line.images_per_second for line in self.metrics),
            epochs=config.epochs,
            unreadable=len(unreadable),
            passed_over=self.passed_over,
            seconds=time.perf_counter() - start,
        )

    def _finish(self, evaluation: Evaluation, unreadable: Sequence[str]) -> None:
        """Write the files of a finished run; `model.json` and the link to the run come last."""
        config = self.config
        provenance = collect_provenance(read_device().to_json())
        draw_curves(self.metrics, self.folder / run_folder.CURVES)
        if unreadable:
            lines = "".join(f"{name}\n" for name in unreadable)
            write_file(self.folder / run_folder.UNREADABLE, lines.encode())
        write_report(
            self.folder, config, self.metrics, evaluation, self.splits.val, self.preprocessing,
            unreadable, provenance,
        )  # fmt: skip
        run_folder.save_model(
            self.folder,
            self.learner.final_network,
            labels=self.splits.train.classes,
            preprocessing=self.preprocessing,
            data=config.data if config.data == DIGITS else str(Path(config.data).resolve()),
            config=config.to_json() | {"processes": self.process.count},
            metrics={
                "accuracy": evaluation.accuracy,
                "unreadable_images": len(unreadable),
                "passed_over_files": self.passed_over,
            },
            learned=self.learner.quantized.learned() if self.learner.quantized else None,
            provenance=provenance,
        )
        run_folder.update_latest_link(self.folder)

    def _batches(self) -> tuple[Iterator[Batch], Iterator[Batch]]:
        """Return the remaining training batches, and validation batches for as many epochs."""
        config, process, position = self.config, self.process, self.position
        epochs = range(position.epochs_done, config.epochs)
        settings = (self.preprocessing, self.augmentation, config.seed)
        train = [EpochImages(self.splits.train, *settings, epoch) for epoch in epochs]
        plan = BatchPlan(
            batch_size=config.batch_size, shuffle=True, start=position.steps_done,
            rank=process.rank, processes=process.count, workers=self.workers,
        )  # fmt: skip
        val = [EpochImages(self.splits.val, self.preprocessing)] * max(1, len(epochs))
        return load_batches(train, plan), load_batches(val, self.val_plan)

    def _train_epoch(self, batches: Iterator[Batch]) -> None:
        """Train the remaining steps of the current epoch."""
        config, process, epoch = self.config, self.process, self.position.epochs_done
        images = len(self.splits.train.files)
        steps = max(1, images // config.batch_size)
        self.learner.train_mode()
        last_save = last_read = time.perf_counter()
        pending: list[Tensor] = []
        waiting_seconds = 0.0
        with self.progress(f"epoch {epoch + 1}", images) as advance:
            advance(self.position.steps_done * config.batch_size)
            for step in range(self.position.steps_done, steps):
                wait_start = time.perf_counter()
                batch = next(batches)
                waiting_seconds += time.perf_counter() - wait_start
                self._add_unreadable("train", batch.unreadable)
                rate = learning_rate(config, epoch + step / steps)
                seed = [config.seed, epoch, step, process.rank, MIXING_STREAM]
                pending.append(self.learner.step(batch, rate, np.random.default_rng(seed)))
                if process.device.type == "cuda" and len(pending) < GPU_STEPS < steps - step:
                    continue
                now = time.perf_counter()
                self._add_steps(pending, now - last_read, waiting_seconds)
                advance(len(pending) * config.batch_size)
                pending, waiting_seconds, last_read = [], 0.0, now
                if process.is_main and now - last_save >= 60 * config.save_minutes:
                    self._save_state()
                    last_save = now
        if not self.position.images:
            reasons = " and ".join(self.skipped.counts)
            raise DataError(
                "no batch has enough decodable training images"
                + (f": each of the skipped ones {reasons}" if reasons else ""),
                "add intact images",
            )

    def _add_steps(self, steps: list[Tensor], seconds: float, waiting_seconds: float) -> None:
        """Add the results of steps to the totals; all processes do this after the same steps."""
        loss, images = self.position.loss, self.position.images
        totals = self.process.total(torch.stack(steps)).tolist()
        for index, (step_loss, step_images) in enumerate(totals):
            if not math.isfinite(step_loss):
                raise self._divergence(step_loss, self.position.steps_done + index + 1)
            loss += step_loss * step_images
            images += int(step_images)
        self.position = replace(
            self.position,
            steps_done=self.position.steps_done + len(steps),
            loss=loss,
            images=images,
            seconds=self.position.seconds + seconds,
            waiting_seconds=self.position.waiting_seconds + waiting_seconds,
        )

    def _divergence(self, loss: float, step: int) -> TrainingError:
        path = self.folder / run_folder.STATE_FILE
        saved = run_folder.load_state(self.folder).position if path.exists() else None
        return TrainingError(
            f"the loss is {loss} in epoch {self.position.epochs_done + 1}, step {step}"
            + (
                f"; {path} holds the last state before it, after {saved.epochs_done} epochs and "
                f"{saved.steps_done} steps"
                if saved
                else ", before the first state was saved"
            ),
            f"start again with an --lr below {self.config.lr:g}",
        )

    def _epoch_metrics(self, evaluation: Evaluation) -> EpochMetrics:
        position = self.position
        return EpochMetrics(
            epoch=position.epochs_done + 1,
            loss=position.loss / position.images,
            val_loss=evaluation.loss,
            accuracy=evaluation.accuracy,
            lr=learning_rate(self.config, position.epochs_done + 1),
            images_per_second=position.images / position.seconds,
            seconds=position.seconds,
            waiting=position.waiting_seconds / position.seconds,
        )

    def _evaluate(self, batches: Iterator[Batch]) -> Evaluation:
        images = self.splits.val
        once = islice(batches, math.ceil(len(images.files) / self.val_plan.batch_size))
        evaluation = evaluate(self.learner.evaluated_model, once, len(images.classes), self.process)
        self._add_unreadable("val", evaluation.unreadable)
        return evaluation

    def _save_state(self) -> None:
        state = TrainingState(
            position=self.position, quantized_inputs=self.quantized_inputs, **self.learner.state()
        )
        run_folder.save_state(self.folder, state)

    def _add_unreadable(self, split: str, reasons: Mapping[int, str]) -> None:
        files = getattr(self.splits, split).files
        for position in sorted(reasons.keys() - self.unreadable[split]):
            self.skipped.add(files[position], reasons[position])
        self.unreadable[split].update(reasons)

    def _unreadable_names(self) -> list[str]:
        """Return the names of the files that any process could not decode."""
        names = []
        for split, positions in self.unreadable.items():
            files = getattr(self.splits, split).files
            mask = torch.zeros(len(files))
            mask[sorted(positions)] = 1
            found = self.process.total(mask).nonzero().flatten().tolist()
            names += [str(files[position]) for position in found]
        return names

    def _log(self, text: str, *values: object) -> None:
        if self.process.is_main:
            logger.info(text, *values)
