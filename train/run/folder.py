"""The files of a run folder: results of training, and the state to resume it.

`state.safetensors` is replaced atomically after every epoch and every few minutes, and includes the
position in the run, so the file on disk is always consistent. `model.json` is written last and
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

from resdeploy.errors import OutputError, TrainingError
from resdeploy.filesystem import write_file
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.json_documents import decode, write_document
from resdeploy.train.config import TrainingConfig
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
TENSORS = ("model", "momentum", "average")  # fields of `TrainingState`, and prefixes in its file


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochMetrics:
    """The metrics of one epoch, a line of `metrics.jsonl`."""

    epoch: int
    loss: float
    """Mean loss of the training images, with label smoothing."""
    val_loss: float
    """Mean loss of the validation images, without label smoothing."""
    accuracy: float
    """Top-1 accuracy on the validation images, in percent."""
    lr: float
    images_per_second: float
    """Training throughput of all processes together."""
    seconds: float
    """Training time, without validation."""
    waiting: float
    """Fraction of `seconds`, from 0 to 1, in which the network waited for images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPosition:
    """The progress of a run, with the totals of its current epoch."""

    epochs_done: int = 0
    steps_done: int = 0
    """Finished steps of the current epoch."""
    loss: float = 0.0
    """Sum of the losses of the images."""
    images: int = 0
    seconds: float = 0.0
    waiting_seconds: float = 0.0
    """Time in which the network waited for images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """The state from which a run can be resumed."""

    position: RunPosition
    model: dict[str, Tensor]
    momentum: dict[str, Tensor]
    """Momentum buffers of the optimiser by parameter."""
    average: dict[str, Tensor]
    """Moving average of the weights; empty without one."""
    quantized_inputs: Mapping[str, str] = field(default_factory=dict)
    """See `QuantizedStart`; empty without quantisation-aware training."""

    def quantized_start(self) -> QuantizedStart:
        """Return the quantised tensors with their current scales."""
        return QuantizedStart(
            weights=None,
            scales={
                name.removeprefix(SCALES).replace(DOT, "."): float(tensor)
                for name, tensor in self.model.items()
                if name.startswith(SCALES)
            },
            quantized_inputs=self.quantized_inputs,
        )


def save_state(folder: Path, state: TrainingState) -> None:
    """Replace the state on disk.

    Raises:
        OutputError: The state cannot be written; the previous one is kept.
    """
    tensors = {
        f"{group}.{name}": tensor.detach().cpu().contiguous()
        for group in TENSORS
        for name, tensor in getattr(state, group).items()
    }
    metadata = {
        "position": json.dumps(asdict(state.position)),
        "quantized_inputs": json.dumps(dict(state.quantized_inputs)),
    }
    write_file(folder / STATE_FILE, save(tensors, metadata))


def load_state(folder: Path) -> TrainingState:
    """Load the newest state of an interrupted run.

    Raises:
        TrainingError: The state is missing or damaged.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise TrainingError(f"{folder} has no {STATE_FILE} to resume from", "start a new run")
    tensors: dict[str, dict[str, Tensor]] = {group: {} for group in TENSORS}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            for full_name in names:
                group, _, name = full_name.partition(".")
                tensors[group][name] = file.get_tensor(full_name)
        return TrainingState(
            position=decode(RunPosition, metadata["position"].encode()),
            quantized_inputs=decode(dict[str, str], metadata["quantized_inputs"].encode()),
            **tensors,
        )
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise TrainingError(f"{path} is damaged: {error}", "start a new run") from error


def begin_run(folder: Path, config: TrainingConfig) -> None:
    """Write the settings of a new run to `folder`, and delete the results of an older run."""
    for name in (MODEL_JSON, STATE_FILE, METRICS, REPORT, UNREADABLE):
        (folder / name).unlink(missing_ok=True)
    write_document(folder / STATE_JSON, config)


def save_metrics(folder: Path, metrics: Sequence[EpochMetrics]) -> None:
    """Write one JSON line per epoch."""
    lines = "".join(json.dumps(asdict(line)) + "\n" for line in metrics)
    write_file(folder / METRICS, lines.encode())


def load_metrics(folder: Path) -> list[EpochMetrics]:
    """Load the metrics of the finished epochs; none if the file is missing.

    Raises:
        TrainingError: The file is damaged.
    """
    path = folder / METRICS
    if not path.is_file():
        return []
    try:
        return [EpochMetrics(**json.loads(line)) for line in path.read_text().splitlines()]
    except (ValueError, TypeError) as error:
        raise TrainingError(f"{path} is damaged: {error}", "start a new run") from error


def load_config(folder: Path) -> TrainingConfig:
    """Load the settings of a run.

    Raises:
        TrainingError: The settings are missing or damaged.
    """
    try:
        return TrainingConfig.from_json(json.loads((folder / STATE_JSON).read_bytes()))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"{folder} cannot be resumed: its {STATE_JSON} is missing or damaged", "start a new run"
        ) from error


def save_model(
    folder: Path,
    network: ResNet,
    *,
    labels: Sequence[str],
    preprocessing: Preprocessing,
    data: str,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    provenance: Mapping[str, Any],
    learned: Mapping[str, float] | None = None,
) -> None:
    """Write the finished network; `model.json` comes last, because it marks a finished run.

    After quantisation-aware training, `learned` holds the largest value of each quantised tensor.
    """
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()
    }
    architecture = network.architecture
    metadata = {
        "arch": architecture.name,
        "shortcut": architecture.shortcut.value,
        "labels": json.dumps(labels),
    }
    write_file(folder / MODEL_FILE, save(weights, metadata))
    document = {
        "architecture": architecture.to_json(),
        "labels": labels,
        "preprocessing": preprocessing,
        "data": data,
        "metrics": metrics,
        "training": config,
        "learned_ranges": learned,
        "provenance": provenance,
    }
    write_document(folder / MODEL_JSON, document)


def update_latest_link(folder: Path) -> None:
    """Point the link `runs/latest` in the working folder to a finished run.

    Raises:
        OutputError: `runs/latest` is not a link, or cannot be written.
    """
    if LATEST.exists() and not LATEST.is_symlink():
        raise OutputError(
            f"{LATEST} is not a link, so resdeploy does not replace it", f"rename {LATEST}"
        )
    try:
        RUNS.mkdir(exist_ok=True)
        temporary = RUNS / f".latest.tmp-{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(folder.resolve(), RUNS.resolve()))
        temporary.replace(LATEST)
    except OSError as error:
        raise OutputError(f"cannot write {LATEST}: {error.strerror}", "check the folder") from error
