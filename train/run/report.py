"""The report of a run, `report.html`: accuracy, confusion matrix and worst mistakes."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from shlex import quote

import numpy as np
import numpy.typing as npt
from PIL import Image

from resdeploy.images.class_folders import LabelledImages
from resdeploy.images.loading import load_image
from resdeploy.images.preprocessing import Preprocessing, size_text
from resdeploy.pages.blocks import (
    MAX_MATRIX_CLASSES,
    Block,
    Commands,
    Facts,
    Matrix,
    Page,
    Picture,
    Pictures,
    Section,
    Table,
    Text,
)
from resdeploy.report.confusion import MAX_CONFUSED_PAIRS, equal_pairs_text
from resdeploy.report.origin import made_text, origin_section
from resdeploy.result_files.provenance import Environment, shown_path, without_folders
from resdeploy.statistics import wilson_interval
from resdeploy.tables import capitalised, percentage, plural
from resdeploy.train.checkpoint.run import MODEL_FILE
from resdeploy.train.config import TrainingConfig
from resdeploy.train.data.shards import ImageFile, image_content
from resdeploy.train.doubts import chance_doubt
from resdeploy.train.evaluation import Evaluation
from resdeploy.train.run.curves import curve_figures
from resdeploy.train.run.folder import UNREADABLE, EpochMetrics
from resdeploy.train.run.outcome import RunOutcome, may_improve, patience_of
from resdeploy.train.step import Learner

MAX_UNREADABLE = 50  # names on the page
_WORDS = {
    "accumulate": "batches per step", "arch": "network", "bf16": "bfloat16",
    "ema": "decay of the averaged weights",
    "init": "initial weights", "lr": "highest learning rate at a batch of 256",
    "min_area": "smallest area of a crop", "qat": "quantisation-aware training",
    "shortcut": "type of the shortcuts", "target_accuracy": "target accuracy in %",
    "warmup_epochs": "warm-up epochs", "workers": "additional processes that read images",
}  # fmt: skip
_ZERO_APPLIES = ("bf16", "compile", "flip", "momentum", "seed", "warmup_epochs", "workers")
_NOT_OF_THE_RESULT = ("preprocessing", "save_minutes", "tensorboard")


def training_page(
    folder: Path,
    settings: Mapping[str, str],
    outcome: RunOutcome,
    metrics: Sequence[EpochMetrics],
    evaluation: Evaluation,
    images: LabelledImages[ImageFile],
    preprocessing: Preprocessing,
    unreadable: Sequence[str],
    environment: Environment,
    command: str,
    warnings: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Page:
    """Return the report of a run.

    The results in `evaluation` are those of the finished network on `images`; `unreadable` names
    the files that could not be decoded, and `command` began the run, which another one may have
    finished. Each of `warnings` ends with "; REMEDY". The summary ends with the `notes`.
    """
    name = shown_path(folder)
    network = f"{settings['network']} at {size_text(preprocessing.image_size)} pixels"
    measured = int(evaluation.confusion.sum())
    low, high = wilson_interval(int(evaluation.confusion.trace()), measured)
    chance = chance_doubt(evaluation.accuracy, measured, outcome.baseline_accuracy)
    has_learned = evaluation.accuracy > outcome.baseline_accuracy and not chance
    doubts = [*warnings, *([chance] if chance else [])]
    accepted = "If the warnings above are acceptable" if doubts else "Next"
    chosen = ", which also chose the epoch" if outcome.epochs > 1 else ""
    stopped = f"The training ended before epoch {outcome.planned_epochs}: {outcome.stopped}."
    longer = ""
    if may_improve(outcome.best_epoch, outcome.epochs, outcome.stopped):
        falls = len(metrics) > 1 and metrics[-1].val_loss < metrics[-2].val_loss
        reason = " and the loss still fell" if falls else ""
        longer = f"; it is the last one{reason}, so more epochs may help"
    environments = [(name, replace(environment, command=c)) for c in (command, environment.command)]
    return Page(
        title=f"{percentage(evaluation.accuracy, 2)} top-1 accuracy",
        lead=f"{network}, {plural(len(images.classes), 'class')}; training run {name}, "
        f"{made_text(environment)}",
        recommendation=f"{accepted}, export the network:" if has_learned else "",
        commands=(f"resdeploy export {quote(name)} --int8",) if has_learned else (),
        summary=(
            f"Trained on {outcome.train_images:,} images; measured on {measured:,} validation "
            f"images (95 % interval {low:.1f} to {high:.1f} %){chosen}.",
            f"{MODEL_FILE} holds the network of epoch {outcome.best_epoch}, the most accurate of "
            f"{outcome.epochs}{longer}.",
            "Always predicting the most frequent class has an accuracy of "
            f"{percentage(outcome.baseline_accuracy, 2)}.",
            *([stopped] if outcome.stopped else []),
            *(f"{capitalised(note)}." for note in notes),
        ),
        warnings=tuple(((w.rpartition("; ")[0],), w.rpartition("; ")[2]) for w in doubts),
        sections=(
            Section(title="Curves", blocks=curve_figures(metrics, outcome)),
            Section(title="Errors", blocks=tuple(_errors(evaluation, images, preprocessing))),
            *_unreadable(unreadable),
            Section(title="Settings", blocks=(Facts(facts=tuple(settings.items())),)),
            origin_section(environments),
        ),
    )


def confused_pairs(confusion: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return the most frequent mistakes as pairs of true and predicted class, at most ten."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_CONFUSED_PAIRS]
    pairs = [divmod(int(index), len(wrong)) for index in order]
    return [pair for pair in pairs if wrong[pair]]


def _errors(
    evaluation: Evaluation, images: LabelledImages[ImageFile], preprocessing: Preprocessing
) -> Iterator[Block]:
    labels, confusion = images.classes, evaluation.confusion
    if len(labels) <= MAX_MATRIX_CLASSES:
        yield Matrix(
            caption="Confusion matrix. Rows are true classes, columns predicted classes.",
            labels=labels,
            counts=tuple(tuple(map(int, row)) for row in confusion),
        )
    pairs = confused_pairs(confusion)
    if not pairs:
        yield Text(text="All images were predicted correctly.")
        return
    yield Table(
        caption="Most frequent errors. Share: part of the images of the true class."
        + equal_pairs_text(
            [int(count) for count in confusion[~np.eye(len(confusion), dtype=bool)] if count]
        ),
        head=("true class", "predicted class", "images", "share"),
        rows=tuple(
            (
                labels[true],
                labels[predicted],
                str(confusion[true, predicted]),
                percentage(100 * confusion[true, predicted] / confusion[true].sum()),
            )
            for true, predicted in pairs
        ),
        names=frozenset([0, 1]),
    )
    all_shown = len(evaluation.worst) == confusion.sum() - confusion.trace()
    if evaluation.worst:
        yield Pictures(
            caption=f"{'All' if all_shown else 'The worst'} mistakes. The images are shown as "
            "the network receives them, sorted by the probability of the true class, lowest first; "
            "percentages are the probabilities of the true and of the predicted class. Some labels "
            "may be wrong.",
            pictures=tuple(
                _picture(
                    images.files[mistake.position],
                    preprocessing,
                    labels[mistake.label],
                    f" ({percentage(100 * mistake.true_probability, 0)}), predicted "
                    f"{labels[mistake.predicted]} ({percentage(100 * mistake.probability, 0)})",
                )
                for mistake in evaluation.worst
            ),
        )


def _picture(file: ImageFile, preprocessing: Preprocessing, title: str, text: str) -> Picture:
    """Return a file's pixels as the network receives them."""
    stream = io.BytesIO()
    Image.fromarray(load_image(image_content(file), preprocessing)).save(stream, "PNG")
    data = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return Picture(data=data, title=title, text=text, name=file.name)


def _unreadable(names: Sequence[str]) -> Iterator[Section]:
    if names:
        lines = tuple(without_folders(name) for name in names[:MAX_UNREADABLE])
        blocks: list[Block] = [Commands(lines=lines)]
        if len(names) > MAX_UNREADABLE:
            blocks.append(Text(text=f"{UNREADABLE} lists all of them."))
        title = f"Files that could not be decoded: {len(names):,}"
        yield Section(title=title, blocks=tuple(blocks))


def used_settings(config: TrainingConfig, learner: Learner, workers: int) -> dict[str, str]:
    """Return the settings that applied, by their names in words; `learner` resolves defaults."""
    network = learner.network.architecture
    values = {name: getattr(config, name) for name in TrainingConfig.__slots__} | {
        "arch": network.name, "stem": network.stem, "shortcut": network.shortcut,
        "bf16": learner.bf16, "compile": learner.compiled, "workers": workers,
        "image_size": size_text(config.image_size), "patience": patience_of(config),
        "min_area": config.crop == "area" and config.min_area,
        "lr": f"{config.lr:g}, so {config.lr * config.batch_size / 256:g} at this batch size",
    }  # fmt: skip
    return {
        _WORDS.get(name, name.replace("_", " ")): _setting_text(value)
        for name, value in values.items()
        if (value or name in _ZERO_APPLIES) and name not in _NOT_OF_THE_RESULT
    }


def _setting_text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Enum):
        return str(value.value)
    return f"{value:g}" if isinstance(value, float) else without_folders(str(value))
