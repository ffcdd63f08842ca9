"""The report of a run, `report.html`: accuracy, confusion matrix and worst mistakes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from resdeploy.filesystem import write_file
from resdeploy.images.class_folders import LabelledImages
from resdeploy.images.loading import load_image
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.pages.blocks import MAX_MATRIX_CLASSES
from resdeploy.pages.template import render_page
from resdeploy.train.config import TrainingConfig
from resdeploy.train.data.shards import ImageFile, TarMember, image_content
from resdeploy.train.evaluation import Evaluation
from resdeploy.train.run.folder import CURVES, REPORT
from resdeploy.train.run.outcome import RunOutcome

TEMPLATE = "train/run/report.html.j2"


def write_report(
    folder: Path,
    config: TrainingConfig,
    outcome: RunOutcome,
    evaluation: Evaluation,
    images: LabelledImages[ImageFile],
    preprocessing: Preprocessing,
    unreadable: Sequence[str],
    provenance: Mapping[str, Any],
) -> None:
    """Write `report.html` to a run folder that holds `curves.png`.

    The results in `evaluation` are those of the finished network on `images`; `unreadable` names
    the files that could not be decoded.
    """
    labels = images.classes
    page = render_page(
        TEMPLATE,
        name=str(folder),
        evaluation=evaluation,
        outcome=outcome,
        labels=labels,
        curves=_data_uri((folder / CURVES).read_bytes()),
        show_matrix=len(labels) <= MAX_MATRIX_CLASSES,
        shares=row_shares(evaluation.confusion),
        pairs=confused_pairs(evaluation.confusion),
        pictures=[
            _picture(images.files[mistake.position], preprocessing) for mistake in evaluation.worst
        ],
        unreadable=unreadable,
        settings=config.to_json(),
        provenance=provenance,
    )
    write_file(folder / REPORT, page)


def row_shares(confusion: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return each entry of a confusion matrix (K, K) as a fraction of its row, from 0 to 1."""
    shares: npt.NDArray[np.float64] = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    return shares


def confused_pairs(confusion: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return the most frequent mistakes as pairs of true and predicted class, at most ten."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:10]
    pairs = [divmod(int(index), len(wrong)) for index in order]
    return [pair for pair in pairs if wrong[pair]]


def _picture(file: ImageFile, preprocessing: Preprocessing) -> tuple[str, str]:
    """Return a file's name, and a data URI of its pixels as the network receives them."""
    name = file.name if isinstance(file, TarMember) else f"{file.parent.name}/{file.name}"
    stream = io.BytesIO()
    Image.fromarray(load_image(image_content(file), preprocessing)).save(stream, "PNG")
    return name, _data_uri(stream.getvalue())


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
