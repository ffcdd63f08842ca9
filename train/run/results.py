"""The results of a finished run: first the weights, then the report, whose errors are warnings."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resdeploy.filesystem import write_file
from resdeploy.images.class_folders import HeldOut, LabelledImages
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.json_documents import parse
from resdeploy.pages.template import to_html
from resdeploy.result_files.provenance import Environment
from resdeploy.train.config import TrainingConfig
from resdeploy.train.data.shards import ImageFile
from resdeploy.train.evaluation import Evaluation
from resdeploy.train.run.folder import (
    LATEST,
    REPORT,
    UNREADABLE,
    EpochMetrics,
    save_model,
    update_latest_link,
)
from resdeploy.train.run.outcome import RunOutcome
from resdeploy.train.run.report import training_page, used_settings
from resdeploy.train.step import Learner

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult(RunOutcome):
    """The result of a training run, as `resdeploy train` reports it."""

    run: Path
    images_per_second: float
    """Median training throughput of the epochs, without validation."""
    seconds: float
    """Duration of this call."""
    schema: str = "resdeploy.training/1"


def write_results(
    folder: Path,
    learner: Learner,
    outcome: RunOutcome,
    *,
    config: TrainingConfig,
    processes: int,
    metrics: Sequence[EpochMetrics],
    evaluation: Evaluation,
    images: LabelledImages[ImageFile],
    preprocessing: Preprocessing,
    unreadable: Sequence[str],
    held_out: HeldOut | None,
    provenance: Mapping[str, Any],
    command: str,
    warnings: Sequence[str],
    notes: Sequence[str],
    workers: int,
) -> None:
    """Write the files of a finished run, and point the link `runs/latest` to it.

    Only the weights and `model.json` are needed to use the network. So they come first, and a
    warning is logged if another file cannot be written. `evaluation` is that of the final
    network on the validation images `images`. The report shows the `warnings`, the `notes`, and the
    `command` that began the run.

    Raises:
        OutputError: The weights cannot be written.
    """
    save_model(
        folder,
        learner.final_network,
        labels=images.classes,
        preprocessing=preprocessing,
        data=config.data,
        held_out=held_out,
        config=config.to_json() | {"processes": processes},
        metrics=asdict(outcome),
        learned=learner.quantized.learned() if learner.quantized else None,
        provenance=provenance,
    )
    with _warning_for(folder / UNREADABLE, folder):
        if unreadable:
            lines = "".join(f"{name}\n" for name in unreadable)
            write_file(folder / UNREADABLE, lines.encode(errors="surrogateescape"))
    with _warning_for(folder / REPORT, folder):
        page = training_page(
            folder, used_settings(config, learner, workers), outcome, metrics, evaluation, images,
            preprocessing, unreadable, parse(Environment, provenance), command, warnings,
            notes,
        )  # fmt: skip
        write_file(folder / REPORT, to_html(page))
    with _warning_for(LATEST, folder):
        update_latest_link(folder)


@contextmanager
def _warning_for(path: Path, folder: Path) -> Iterator[None]:
    """Log a warning for any error, because the run in `folder` is complete without this file."""
    try:
        yield
    except Exception as error:
        logger.warning(
            "%s was not written, but %s is complete: %s; to try again: "
            "resdeploy train --resume %s", path, folder, error, folder,
        )  # fmt: skip
