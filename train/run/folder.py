"""The run folder: what training leaves behind, and what it needs to go on after an interruption.

`state.safetensors` is replaced whole, after every epoch and every few minutes, and carries its own
place in the run, so the newest one on disk is always consistent; `model.json` appears last and
marks a finished run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from resdeploy.documents import jsonable
from resdeploy.errors import OutputError, TrainingError
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.storage import write_file
from resdeploy.train.model.checkpoint import MODEL_FILE, MODEL_JSON
from resdeploy.train.model.resnet import ResNet
from resdeploy.train.qat.network import DOT, SCALES, QuantizedStart

STATE_FILE = "state.safetensors"
STATE_JSON = "state.json"
METRICS = "metrics.jsonl"
CURVES = "curves.png"
REPORT = "report.html"
UNREADABLE = "unreadable.txt"
RUNS = Path("runs")
LATEST = RUNS / "latest"
MODEL_PREFIX = "model."
MOMENTUM_PREFIX = "momentum."
AVERAGE_PREFIX = "average."


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochMetrics:
    """One line of `metrics.jsonl`."""

    epoch: int
    loss: float
    """Mean over the training images, with label smoothing."""
    val_loss: float
    """Mean over the validation images, without."""
    accuracy: float
    """On the validation images, in percent."""
    lr: float
    images_per_second: float
    """In training, all processes together."""
    seconds: float
    """Of training."""
    waiting: float
    """Share of them, from 0 to 1, in which the network waited for images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """How far a run is, and what the epoch that it is in has added up so far."""

    epochs_done: int = 0
    steps_done: int = 0
    """Of the epoch after them."""
    loss: float = 0.0
    """Sum over the images."""
    images: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    """Seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """Everything that the next step depends on; randomness is a function of seed and place."""

    place: Place
    model: dict[str, Tensor]
    momentum: dict[str, Tensor]
    """Momentum buffers of the optimiser, by parameter."""
    average: dict[str, Tensor]
    """The average of the weights; empty where there is none."""
    reads: Mapping[str, str] = field(default_factory=dict)
    """See `QuantizedStart`; empty where the run is in float."""

    def quantized_start(self) -> QuantizedStart:
        """The tensors that the run quantises, with the scales that they have so far."""
        return QuantizedStart(
            weights=None,
            scales={
                name.removeprefix(SCALES).replace(DOT, "."): float(tensor)
                for name, tensor in self.model.items()
                if name.startswith(SCALES)
            },
            reads=self.reads,
        )


def save_state(folder: Path, state: TrainingState) -> None:
    """Replace the state on disk.

    Raises:
        OutputError: it cannot be written; the former state is still there.
    """
    tensors = {f"{MODEL_PREFIX}{name}": tensor for name, tensor in state.model.items()}
    tensors |= {f"{AVERAGE_PREFIX}{name}": tensor for name, tensor in state.average.items()}
    tensors |= {f"{MOMENTUM_PREFIX}{name}": tensor for name, tensor in state.momentum.items()}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    facts = {"place": json.dumps(asdict(state.place)), "reads": json.dumps(dict(state.reads))}
    write_file(folder / STATE_FILE, save(contiguous, facts))


def load_state(folder: Path) -> TrainingState:
    """The newest state of an interrupted run.

    Raises:
        TrainingError: there is none, or it is damaged.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise TrainingError(f"{folder} has no {STATE_FILE} to resume from", "start a new run")
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            place = Place(**json.loads(facts["place"]))
            reads = {
                str(layer): str(tensor) for layer, tensor in json.loads(facts["reads"]).items()
            }
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, AttributeError, KeyError, ValueError, TypeError) as error:
        raise TrainingError(f"{path} is damaged: {error}", "start a new run") from error
    return TrainingState(
        place=place,
        model=_without_prefix(tensors, MODEL_PREFIX),
        momentum=_without_prefix(tensors, MOMENTUM_PREFIX),
        average=_without_prefix(tensors, AVERAGE_PREFIX),
        reads=reads,
    )


def begin(folder: Path, config: Mapping[str, Any]) -> None:
    """Make `folder` that of a new run: an older run's results go, the settings are written."""
    for leftover in (MODEL_JSON, STATE_FILE, METRICS, REPORT, UNREADABLE):
        (folder / leftover).unlink(missing_ok=True)
    write_file(folder / STATE_JSON, _json(config))


def sweep(folder: Path) -> None:
    """Remove what a process that was killed while it wrote has left."""
    for leftover in folder.glob(".*.tmp-*"):
        leftover.unlink(missing_ok=True)


def save_unreadable(folder: Path, names: Sequence[str]) -> None:
    """List the image files that could not be decoded, one per line."""
    write_file(folder / UNREADABLE, "".join(f"{name}\n" for name in names).encode())


def save_metrics(folder: Path, metrics: Sequence[EpochMetrics]) -> None:
    """Write one JSON line per epoch."""
    lines = "".join(json.dumps(asdict(line)) + "\n" for line in metrics)
    write_file(folder / METRICS, lines.encode())


def load_metrics(folder: Path) -> list[EpochMetrics]:
    """The epochs so far; none where there is no file.

    Raises:
        TrainingError: the file is damaged.
    """
    path = folder / METRICS
    if not path.is_file():
        return []
    try:
        return [EpochMetrics(**json.loads(line)) for line in path.read_text().splitlines()]
    except (ValueError, TypeError) as error:
        raise TrainingError(f"{path} is damaged: {error}", "start a new run") from error


def load_config(folder: Path) -> dict[str, Any]:
    """The settings of a run that was begun.

    Raises:
        TrainingError: they are missing or damaged.
    """
    try:
        config = json.loads((folder / STATE_JSON).read_bytes())
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{folder} cannot be resumed: its {STATE_JSON} is missing or damaged", "start a new run"
        ) from error
    return dict(config)


def save_model(
    folder: Path,
    network: ResNet,
    *,
    labels: Sequence[str],
    preprocessing: Preprocessing,
    data: str,
    config: Mapping[str, Any],
    metrics: Mapping[str, float],
    provenance: Mapping[str, Any],
    learned: Mapping[str, float] | None = None,
) -> None:
    """Write the finished network; `model.json` comes last, as a run without it is unfinished.

    `learned` holds, for a network that was trained quantised, the largest value of each tensor.
    """
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()
    }
    architecture = network.architecture
    metadata = {
        "arch": architecture.name,
        "shortcut": architecture.shortcut.value,
        "labels": json.dumps(list(labels)),
    }
    write_file(folder / MODEL_FILE, save(weights, metadata))
    document = {
        "architecture": architecture.to_json(),
        "labels": list(labels),
        "preprocessing": jsonable(preprocessing),
        "data": data,
        "metrics": dict(metrics),
        "training": dict(config),
        "learned_ranges": None if learned is None else dict(learned),
        "provenance": dict(provenance),
    }
    write_file(folder / MODEL_JSON, _json(document))


def point_latest_to(folder: Path) -> None:
    """Let `runs/latest` in the working folder name the newest finished run.

    Raises:
        OutputError: `runs/latest` is something else, or cannot be written.
    """
    if LATEST.exists() and not LATEST.is_symlink():
        raise OutputError(f"{LATEST} is not a link", "rename it; resdeploy keeps a link there")
    try:
        RUNS.mkdir(exist_ok=True)
        temporary = RUNS / f".latest.tmp-{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(folder.resolve(), RUNS.resolve()))
        temporary.replace(LATEST)
    except OSError as error:
        raise OutputError(f"cannot write {LATEST}: {error.strerror}", "check the folder") from error


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def _without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
