"""A run's `report.html`: how good the network became, what it confuses, and its worst mistakes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resdeploy.images.folder import LabelledImages
from resdeploy.images.preprocessing import Preprocessing, UInt8Array, load_image
from resdeploy.pages.template import render_page
from resdeploy.storage import write_file
from resdeploy.train.config import TrainingConfig
from resdeploy.train.data.shards import ImageFile, Member, content_of
from resdeploy.train.evaluation import Evaluation, Mistake
from resdeploy.train.run.folder import CURVES, REPORT, EpochMetrics

TEMPLATE = "train/run/report.html.j2"
LARGEST_MATRIX = 25  # classes; more do not fit on a page
PAIRS = 10


@dataclass(frozen=True, slots=True)
class Cell:
    """Of the confusion matrix."""

    count: int
    share: float
    """Of the row's images, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Row:
    """A class with what its images were taken for."""

    label: str
    cells: tuple[Cell, ...]
    right: float
    """In percent."""


@dataclass(frozen=True, slots=True)
class ConfusedPair:
    """Images of one class that were taken for another."""

    shown: str
    taken_for: str
    count: int
    percent: float
    """Of the images of `shown`."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A mistake, to be looked at."""

    file: str
    pixels: str
    """A data URI."""
    label: str
    predicted: str
    percent: float


def write_report(
    folder: Path,
    config: TrainingConfig,
    metrics: Sequence[EpochMetrics],
    evaluation: Evaluation,
    images: LabelledImages[ImageFile],
    preprocessing: Preprocessing,
    unreadable: Sequence[str],
    provenance: Mapping[str, Any],
) -> None:
    """Write `folder/report.html`, with `folder/curves.png` in it.

    Args:
        folder: Of the run.
        config: Its settings.
        metrics: A line for each epoch.
        evaluation: Of the finished network.
        images: Those that were evaluated.
        preprocessing: How they become pixels.
        unreadable: Names of files that could not be decoded.
        provenance: Versions, command and machine.

    Raises:
        MissingDependencyError: Jinja2 is not installed.
        OutputError: the page cannot be written.
    """
    labels = images.classes
    page = render_page(
        TEMPLATE,
        name=str(folder),
        evaluation=evaluation,
        metrics=metrics,
        labels=labels,
        curves=_data_uri((folder / CURVES).read_bytes()),
        matrix=matrix(evaluation, labels) if len(labels) <= LARGEST_MATRIX else (),
        pairs=confused_pairs(evaluation, labels),
        pictures=[_picture(mistake, images, preprocessing) for mistake in evaluation.worst],
        unreadable=unreadable,
        settings=config.to_json(),
        provenance=provenance,
    )
    write_file(folder / REPORT, page)


def matrix(evaluation: Evaluation, labels: Sequence[str]) -> list[Row]:
    """The rows of the confusion matrix."""
    rows = []
    for index, counts in enumerate(evaluation.confusion):
        total = max(1, int(counts.sum()))
        cells = tuple(Cell(int(count), float(count) / total) for count in counts)
        rows.append(Row(labels[index], cells, 100 * cells[index].share))
    return rows


def confused_pairs(evaluation: Evaluation, labels: Sequence[str]) -> list[ConfusedPair]:
    """The pairs of classes that are confused most often, the most frequent first."""
    wrong = evaluation.confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    pairs = []
    for place in order:
        row, column = divmod(int(place), len(labels))
        if count := int(wrong[row, column]):
            total = int(evaluation.confusion[row].sum())
            pairs.append(ConfusedPair(labels[row], labels[column], count, 100 * count / total))
    return pairs


def _picture(
    mistake: Mistake, images: LabelledImages[ImageFile], preprocessing: Preprocessing
) -> Picture:
    file = images.files[mistake.position]
    return Picture(
        file=file.name if isinstance(file, Member) else f"{file.parent.name}/{file.name}",
        pixels=_data_uri(_png(load_image(content_of(file), preprocessing))),
        label=images.classes[mistake.label],
        predicted=images.classes[mistake.predicted],
        percent=100 * mistake.probability,
    )


def _png(pixels: UInt8Array) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
