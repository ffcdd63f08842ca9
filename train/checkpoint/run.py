"""The description of a finished run, `model.json`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from resdeploy.bundle.manifest import MANIFEST
from resdeploy.errors import CheckpointError
from resdeploy.filesystem import read_limited
from resdeploy.images.class_folders import HeldOut
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.json_documents import MAX_BYTES, decode
from resdeploy.train.model.architecture import Architecture

MODEL_FILE = "model.safetensors"
MODEL_JSON = "model.json"
METRICS = "metrics.jsonl"  # written after each epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMetrics:
    """The accuracy of a run on its validation images."""

    accuracy: float | None = None
    """Top-1 accuracy in percent."""
    baseline_accuracy: float | None = None
    """Accuracy of always predicting the class with the most training images, in percent."""
    val_images: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDocument:
    """The fields of `model.json` that are needed again."""

    architecture: dict[str, Any]
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    data: str
    held_out: HeldOut | None = None
    learned_ranges: dict[str, float] | None = None
    provenance: dict[str, Any] | None = None
    metrics: RunMetrics | None = None

    def __post_init__(self) -> None:
        if self.learned_ranges and min(self.learned_ranges.values()) <= 0:
            raise ValueError("learned_ranges has a value that is not above 0")


def resume_command(folder: Path) -> str:
    """Return the command that continues an unfinished run."""
    return f"resdeploy train --resume {quote(str(folder))}"


def ways_to_go_on(folder: Path) -> str:
    """Return the commands that continue an unfinished run, or end it with its best epoch."""
    resume = resume_command(folder)
    end = f"; to end with the best epoch so far: {resume} --finish"
    return f"to continue: {resume}{end if (folder / METRICS).is_file() else ''}"


def read_run(folder: Path) -> tuple[RunDocument, Architecture]:
    """Read the description of a run.

    Raises:
        CheckpointError: The folder is not that of a finished run, or its description is damaged.
    """
    description = folder / MODEL_JSON
    if (folder / MANIFEST).is_file():
        raise CheckpointError(
            f"{folder} is a bundle, which holds graphs but no weights of PyTorch",
            "give the checkpoint that the bundle was exported from; its report names it",
        )
    if not description.is_file():
        unfinished = (folder / "state.safetensors").exists()
        raise CheckpointError(
            f"{folder} is {'an unfinished run' if unfinished else 'not a run folder'}: "
            f"it has no {MODEL_JSON}",
            ways_to_go_on(folder)
            if unfinished
            else "create a run with resdeploy train, or give the path of a file of weights",
        )
    hint = f"copy the run again, or give the path of {MODEL_FILE} instead of the folder"
    data = read_limited(description, MAX_BYTES, CheckpointError, hint)
    try:
        model = decode(RunDocument, data)
        architecture = Architecture.from_json(model.architecture)
        if len(model.labels) != (classes := architecture.classes):
            raise ValueError(f"it has {len(model.labels)} labels for {classes} classes")
    except ValueError as error:
        raise CheckpointError(f"{description} is damaged: {error}", hint) from error
    return model, architecture


def recorded_run(weights: Path) -> RunDocument | None:
    """Return the description of the run in the folder `weights` or beside its file, if any."""
    weights = weights.resolve()
    with suppress(CheckpointError):  # `load_checkpoint` reports it if it matters
        return read_run(weights.parent if weights.name == MODEL_FILE else weights)[0]
    return None
