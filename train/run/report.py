"""The report of a run, `report.html`: accuracy, confusion matrix and worst mistakes."""

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
from resdeploy.train.data.shards import ImageFile, TarMember, image_content
from resdeploy.train.evaluation import Evaluation, Mistake
from resdeploy.train.run.folder import CURVES, REPORT, EpochMetrics

TEMPLATE = "train/run/report.html.j2"
MAX_MATRIX_CLASSES = 25  # larger matrices do not fit on a page
MAX_PAIRS = 10


@dataclass(frozen=True, slots=True)
class ConfusionCell:
    """One cell of the confusion matrix."""

    count: int
    """Number of images."""
    share: float
    """Fraction of the images in the row, 0 to 1."""


@dataclass(frozen=True, slots=True)
class ConfusionRow:
    """The predictions for the images of one class."""

    label: str
    cells: tuple[ConfusionCell, ...]
    accuracy: float
    """Share of correct predictions, in percent."""


@dataclass(frozen=True, slots=True)
class ConfusedPair:
    """The images of one class for which another class was predicted."""

    label: str
    predicted: str
    count: int
    percent: float
    """Share of the images of `label`, in percent."""


@dataclass(frozen=True, slots=True)
class MistakePicture:
    """An image with a wrong prediction, for display."""

    file: str
    data_uri: str
    label: str
    predicted: str
    percent: float
    """Probability of the predicted class, in percent."""


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
    """Write `folder/report.html`, which includes `folder/curves.png`.

    Args:
        folder: Run folder.
        config: Settings of the run.
        metrics: Metrics of each epoch.
        evaluation: Results of the finished network.
        images: Images that were evaluated.
        preprocessing: Preprocessing of these images.
        unreadable: Names of the files that could not be decoded.
        provenance: Versions, command and machine.

    Raises:
        MissingDependencyError: Jinja2 is not installed.
        OutputError: The page cannot be written.
    """
    labels = images.classes
    page = render_page(
        TEMPLATE,
        name=str(folder),
        evaluation=evaluation,
        metrics=metrics,
        labels=labels,
        curves=_data_uri((folder / CURVES).read_bytes()),
        confusion=confusion_rows(evaluation, labels) if len(labels) <= MAX_MATRIX_CLASSES else (),
        pairs=confused_pairs(evaluation, labels),
        pictures=[_picture(mistake, images, preprocessing) for mistake in evaluation.worst],
        unreadable=unreadable,
        settings=config.to_json(),
        provenance=provenance,
    )
    write_file(folder / REPORT, page)


def confusion_rows(evaluation: Evaluation, labels: Sequence[str]) -> list[ConfusionRow]:
    """Return the rows of the confusion matrix."""
    rows = []
    for index, counts in enumerate(evaluation.confusion):
        total = max(1, int(counts.sum()))
        cells = tuple(ConfusionCell(int(count), float(count) / total) for count in counts)
        rows.append(ConfusionRow(labels[index], cells, 100 * cells[index].share))
    return rows


def confused_pairs(evaluation: Evaluation, labels: Sequence[str]) -> list[ConfusedPair]:
    """Return the pairs of classes that are confused most often, the most frequent first."""
    wrong = evaluation.confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_PAIRS]
    pairs = []
    for index in order:
        row, column = divmod(int(index), len(labels))
        if count := int(wrong[row, column]):
            total = int(evaluation.confusion[row].sum())
            pairs.append(ConfusedPair(labels[row], labels[column], count, 100 * count / total))
    return pairs


def _picture(
    mistake: Mistake, images: LabelledImages[ImageFile], preprocessing: Preprocessing
) -> MistakePicture:
    file = images.files[mistake.position]
    return MistakePicture(
        file=file.name if isinstance(file, TarMember) else f"{file.parent.name}/{file.name}",
        data_uri=_data_uri(_png(load_image(image_content(file), preprocessing))),
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
