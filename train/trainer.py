"""The training loop: it reads the data, trains epoch by epoch and writes the run folder."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from statistics import median_high

import numpy as np
import torch
from torch import Tensor

from resdeploy.errors import DataError, Interrupted
from resdeploy.filesystem import check_writable
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.machine.device import read_device
from resdeploy.progress import Progress, counted, silent
from resdeploy.result_files.provenance import collect_provenance
from resdeploy.train import defaults, initialization
from resdeploy.train.checkpoint.load import Checkpoint
from resdeploy.train.config import TrainingConfig, learning_rate
from resdeploy.train.data.augment import Augmentation
from resdeploy.train.data.dataset import Batch, BatchPlan, DataSplits, EpochImages, load_batches
from resdeploy.train.data.workers import affordable_workers
from resdeploy.train.distributed import Process, connect_processes
from resdeploy.train.doubts import doubts_after, majority_baseline, reasons_to_doubt
from resdeploy.train.evaluation import VAL_BATCH, Evaluation, evaluate, validation_plan
from resdeploy.train.qat.distillation import Teacher
from resdeploy.train.qat.network import QuantizedStart
from resdeploy.train.run import folder as run_folder
from resdeploy.train.run import output
from resdeploy.train.run.failures import divergence, explained_failures
from resdeploy.train.run.folder import EpochMetrics, RunPosition, TrainingState
from resdeploy.train.run.outcome import RunOutcome, best_epoch, epoch_metrics, reason_to_stop
from resdeploy.train.run.progress_table import HEADER, DurationEstimate, epoch_line
from resdeploy.train.run.record import (
    STATE_JSON,
    RunRecord,
    load_record,
    read_run_data,
    save_record,
)
from resdeploy.train.run.results import TrainingResult, write_results
from resdeploy.train.run.tensorboard import event_writer
from resdeploy.train.run.unreadable import UnreadableFiles
from resdeploy.train.step import MIN_IMAGES, Learner

logger = logging.getLogger(__name__)

GPU_STEPS = 20  # steps between reads of the loss, because each read waits for the GPU
MIXING_STREAM = 1  # last part of the seed, so that mixing and augmentation draw other numbers


def train(
    config: TrainingConfig,
    folder: Path,
    *,
    start: QuantizedStart | None = None,
    initial: Checkpoint | None = None,
    splits: DataSplits | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> TrainingResult:
    """Train a network and write a run folder; under `torchrun`, share the work between processes.

    Args:
        config: Settings of the run.
        folder: Run folder to write.
        start: Initial weights and scales for `config.qat`; see `quantized_start`.
        initial: The checkpoint of `config.init`, if `prepare` returned it with the settings.
        splits: The images of `config.data`, if they were read before.
        force: True to replace an existing run.
        progress: Receiver of the number of images done.

    Raises:
        OutputError: `folder` exists and `force` is not set, or it cannot be written.
        DataError: The images cannot be used.
        CheckpointError: The initial weights cannot be used.
        TrainingError: The loss is NaN or infinite, the batch is too small for the processes, or a
            process stopped.
    """
    with connect_processes() as process:
        if process.is_main:
            output.check_new_run(folder, force=force)
        if initial is None:
            config, initial = initialization.prepare(config)
        output.check_outside(folder, config.data)
        trainer = _Trainer(config, folder, process, progress, start, initial=initial, splits=splits)
        with output.locked_run(folder, process, force=force):
            trainer.begin()
            return trainer.train()


def resume(
    folder: Path,
    data: str | None = None,
    *,
    workers: int | None = None,
    finish: bool = False,
    progress: Progress = silent,
) -> TrainingResult:
    """Continue an interrupted run from its newest state, with the settings stored in its folder.

    Under `torchrun` every process reads the folder.

    Args:
        folder: Run folder.
        data: Place of the run's data, if it has moved.
        workers: Processes that decode images; None for the run's own setting.
        finish: True to train no further, and to write the results of the best epoch so far.
        progress: Receiver of the number of images done.

    Raises:
        TrainingError: The folder holds no run that can be resumed, or no epoch to `finish` with.
        DataError: The images cannot be used, or are not those of the run.
        OutputError: The folder cannot be written.
    """
    record = load_record(folder)
    check_writable(folder / STATE_JSON)
    config = replace(
        record.config,
        data=data or record.config.data,
        workers=record.config.workers if workers is None else workers,
    )
    with connect_processes() as process, output.locked_run(folder, process, resumed=True):
        state = run_folder.load_state(folder, record)
        metrics = run_folder.load_metrics(folder, state.position.epochs_done, finish=finish)
        start = state.quantized_start() if config.qat else None
        trainer = _Trainer(config, folder, process, progress, start, record)
        trainer.restore(state, metrics, finish)
        process.gather(torch.zeros(()))  # waits until all processes have read the folder
        trainer.begin()
        return trainer.train()


class _Trainer:
    """The objects and counters of one training run."""

    def __init__(
        self, config: TrainingConfig, folder: Path, process: Process, progress: Progress,
        start: QuantizedStart | None, resumed: RunRecord | None = None,
        initial: Checkpoint | None = None, splits: DataSplits | None = None,
    ) -> None:  # fmt: skip
        """Read the data and the initial weights, and check them against a `resumed` run."""
        self.config = config.pinned()
        self.folder = folder
        self.process = process
        self.progress = progress if process.is_main else silent
        self.preprocessing = config.preprocessing or Preprocessing.standard(config.image_size)
        self.augmentation = Augmentation(
            flip=self.config.flip is True,
            min_area=self.config.min_area or 1.0,
            crop=config.crop,
            randaugment=config.randaugment,
        )
        splits, identity = read_run_data(config, folder, resumed, splits)
        process.check_equal("images", repr(identity))
        self.resumed = resumed is not None
        self.teacher_file: bytes | None = None
        if resumed is not None:
            network = initialization.resumed_network(config, resumed.architecture)
            self.record = replace(resumed, config=self.config)
        else:
            begun = initialization.initial_network(config, splits.train.classes, initial)
            network = begun.network
            if config.distillation:
                self.teacher_file = run_folder.pack_weights(network)
            self.record = RunRecord.new(self.config, identity, begun, self.teacher_file)
        self.splits = splits.relabelled(self.record.labels, self.record.outputs)
        teacher = None
        if config.distillation:
            teacher = Teacher(
                run_folder.load_teacher(folder, resumed) if resumed else copy.deepcopy(network),
                self.preprocessing,
                average_mirrored=self.augmentation.flip,
            )
        if start is not None and start.weights is not None:
            network.load_state_dict(dict(start.weights))
        class_weights = (
            initialization.balanced_weights(self.splits.train) if config.class_weights else None
        )
        self.learner = Learner(
            config, network, self.preprocessing, process, class_weights, start, teacher
        )
        self.quantized_inputs = start.quantized_inputs if start is not None else {}
        self.workers = affordable_workers(
            config.workers,
            self.preprocessing.image_size,
            images=(
                -(-min(config.batch_size, len(self.splits.train.files)) // process.count),
                min(VAL_BATCH, len(self.splits.val.files)),
            ),
        )
        self.plan = BatchPlan(
            batch_size=config.batch_size, shuffle=True, least=MIN_IMAGES * process.count,
            rank=process.rank, processes=process.count, workers=self.workers,
        )  # fmt: skip
        self.steps = self.plan.step_sizes(len(self.splits.train.files))
        self.val_plan = validation_plan(process, self.workers)
        self.position = self.saved = RunPosition()
        self.metrics, self.finish = list[EpochMetrics](), False
        self.estimate = DurationEstimate(self.config, sum(self.steps), len(self.splits.val.files))
        self.unreadable = UnreadableFiles(self.splits, process)

    def restore(self, state: TrainingState, metrics: list[EpochMetrics], finish: bool) -> None:
        """Continue from a saved state, or only `finish`."""
        self.learner.restore(state.model, state.momentum, state.average, state.best)
        self.position = self.saved = state.position
        self.metrics, self.finish = metrics, finish
        self._log("%s after %s", "finishing" if finish else "resuming", self.position)

    def begin(self) -> None:
        """Check the free space, and write what a resumed run needs before the first epoch."""
        if not self.process.is_main:
            return
        state, weights = self.learner.state_bytes()
        needed = state + weights + output.report_bytes(self.preprocessing.image_size)
        if self.resumed:
            run_folder.remove_temporary_files(self.folder)
            output.check_space(self.folder, needed)
            save_record(self.folder, self.record)  # the data may have moved
            return
        needed += state + len(self.teacher_file or b"")  # a new state is written beside the old one
        output.check_space(self.folder, needed, [self.folder / name for name in run_folder.RESULTS])
        run_folder.begin_run(self.folder, self.record, self.teacher_file)
        self.teacher_file = None  # it is large
        self._save_state()

    def train(self) -> TrainingResult:
        """Train the remaining epochs and write the results."""
        alone = self.process.count == 1
        with explained_failures(self.folder, lambda: self.saved, self._log, alone) as self.stop:
            return self._train()

    def _train(self) -> TrainingResult:
        start = time.perf_counter()
        config = self.config
        evaluation = None
        write_event = None
        provenance = collect_provenance(read_device().to_json())
        if config.tensorboard and self.process.is_main:
            write_event = event_writer(self.folder, self.position.epochs_done)
        train_batches, val_batches = self._batches()
        warnings = list(reasons_to_doubt(config, self.splits, len(self.steps)))
        for reason in warnings if self.process.is_main and not self.resumed else []:
            logger.warning("%s", reason)
        self._log(
            "always predicting %r has an accuracy of %.2f %%", *majority_baseline(self.splits)
        )
        self._log("%s", "taking the best epoch so far" if self.finish else HEADER)
        while self.position.epochs_done < config.epochs and not self.finish:
            if reason_to_stop(self.metrics, config):
                break
            self._train_epoch(train_batches)
            found = self._evaluate(val_batches)
            self.metrics.append(epoch_metrics(self.position, found, config))
            if best_epoch(self.metrics) is self.metrics[-1]:
                self.learner.keep_best()
                evaluation = found
            self.position = RunPosition(epochs_done=self.position.epochs_done + 1)
            if self.process.is_main:
                run_folder.save_metrics(self.folder, self.metrics)
                self._save_state()
            if write_event is not None:
                write_event(self.metrics[-1])
            self._log("%s", epoch_line(self.metrics, config.epochs))
            self._check_stop()
        self.learner.use_best()
        # A resumed run may have finished its best epoch before.
        evaluation = evaluation or self._evaluate(val_batches)
        unreadable = self.unreadable.names()
        self.unreadable.skipped.report()
        outcome = RunOutcome.of(
            self.metrics, config, self.splits, evaluation.accuracy, len(unreadable), self.finish
        )
        if self.process.is_main:
            for warning in doubts_after(outcome, self.metrics[-1].loss, config, self.splits):
                logger.warning("%s", warning)
                warnings.append(warning)
            write_results(
                self.folder, self.learner, outcome, config=config, workers=self.workers,
                processes=self.process.count, metrics=self.metrics, evaluation=evaluation,
                images=self.splits.val, preprocessing=self.preprocessing, unreadable=unreadable,
                provenance=provenance, held_out=self.record.data.held_out, warnings=warnings,
                notes=[*defaults.notes_on(config, self.splits)], command=self.record.command,
            )  # fmt: skip
        return TrainingResult(
            run=self.folder,
            images_per_second=median_high(line.images_per_second for line in self.metrics),
            seconds=time.perf_counter() - start,
            **asdict(outcome),
        )

    def _batches(self) -> tuple[Iterator[Batch], Iterator[Batch]]:
        """Return the batches of the remaining training epochs and validations."""
        epochs = range(self.position.epochs_done, 0 if self.finish else self.config.epochs)
        settings = (self.preprocessing, self.augmentation, self.config.seed)
        train = [EpochImages(self.splits.train, *settings, epoch) for epoch in epochs]
        plan = replace(self.plan, start=self.position.steps_done)
        # Once more than the epochs, for the best weights of a resumed run.
        val = [EpochImages(self.splits.val, self.preprocessing)] * (len(epochs) + 1)
        return load_batches(train, plan), load_batches(val, self.val_plan)

    def _train_epoch(self, batches: Iterator[Batch]) -> None:
        """Train the remaining steps of the current epoch."""
        config, process, epoch = self.config, self.process, self.position.epochs_done
        steps, first = len(self.steps), self.position.steps_done
        self.learner.train_mode()
        last_save = last_read = time.perf_counter()
        pending: list[Tensor] = []
        waiting_seconds = 0.0
        name = f"the rest of epoch {epoch + 1}" if first else f"epoch {epoch + 1}"
        with self.progress(name, sum(self.steps[first:])) as advance:
            for step in range(first, steps):
                wait_start = time.perf_counter()
                batch = next(batches)
                waiting_seconds += time.perf_counter() - wait_start
                self.unreadable.add("train", batch.unreadable)
                rate = learning_rate(config, epoch + step / steps)
                seed = [config.seed, epoch, step, process.rank, MIXING_STREAM]
                pending.append(self.learner.step(batch, rate, np.random.default_rng(seed)))
                few = len(pending) < GPU_STEPS < steps - step and self.stop.code is None
                if few and process.device.type == "cuda":
                    continue
                now = time.perf_counter()
                self._add_steps(pending, now - last_read, waiting_seconds)
                advance(sum(self.steps[step + 1 - len(pending) : step + 1]))
                pending, waiting_seconds, last_read = [], 0.0, now
                if line := self.estimate.line(self.position):
                    self._log("%s", line)
                self._check_stop()
                if process.is_main and now - last_save >= 60 * config.save_minutes:
                    self._save_state()
                    last_save = now
        if not self.position.images:
            reasons = " and ".join(self.unreadable.skipped.counts)
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
                step = self.position.steps_done + index + 1
                epoch = self.position.epochs_done + 1
                raise divergence(self.config, self.folder, epoch=epoch, step=step, loss=step_loss)
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

    def _evaluate(self, batches: Iterator[Batch]) -> Evaluation:
        images = self.splits.val
        count = math.ceil(len(images.files) / self.val_plan.batch_size)
        with self.progress("validating", count) as advance:
            counted_batches = counted(islice(batches, count), advance)
            once = (batch for batch in counted_batches if self._check_stop())
            model = self.learner.evaluated_model
            evaluation = evaluate(model, once, len(images.classes), self.process)
        self.unreadable.add("val", evaluation.unreadable)
        return evaluation

    def _check_stop(self) -> bool:
        """Return True, or save the state and raise if a signal has come."""
        if self.stop.code is None:
            return True
        if self.position != self.saved:
            self._save_state()
        raise Interrupted("", self.stop.code)

    def _save_state(self) -> None:
        state = TrainingState(
            run=self.record.id,
            position=self.position,
            quantized_inputs=self.quantized_inputs,
            **self.learner.state(),
        )
        run_folder.save_state(self.folder, state)
        self.saved = self.position

    def _log(self, text: str, *values: object) -> None:
        for line in (text % values).splitlines() if self.process.is_main else []:
            logger.info("%s", line)  # a line break in a message would be escaped
