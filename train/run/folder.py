"""The files of a run folder: results of training, and the state to resume it.

`state.safetensors` is written before the first epoch, and replaced atomically after every epoch and
every few minutes. It includes the position in the run, so the file on disk is always consistent.
`model.json` marks a finished run.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from resdeploy.errors import OutputError, TrainingError
from resdeploy.filesystem import claimed, read_limited, sha256_file, write_file
from resdeploy.images.class_folders import HeldOut
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.json_documents import MAX_BYTES, decode, strict_json, write_document
from resdeploy.readable_text import readable
from resdeploy.tables import plural
from resdeploy.train.checkpoint.run import METRICS, MODEL_FILE, MODEL_JSON, ways_to_go_on
from resdeploy.train.checkpoint.safetensors_file import read_safetensors
from resdeploy.train.model.resnet import ResNet
from resdeploy.train.qat.network import DOT, SCALES, QuantizedStart
from resdeploy.train.run.record import FORMAT, RunRecord, other_format, save_record

STATE_FILE = "state.safetensors"
TEACHER_FILE = "teacher.safetensors"
REPORT = "report.html"
UNREADABLE = "unreadable.txt"
RESULTS = (
    MODEL_JSON, MODEL_FILE, STATE_FILE, TEACHER_FILE, METRICS, REPORT, UNREADABLE,
)  # fmt: skip
RUNS = Path("runs")
LATEST = RUNS / "latest"
# Fields of `TrainingState`, and prefixes in its file.
TENSORS = ("model", "momentum", "average", "best")


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

    def __str__(self) -> str:
        return f"{plural(self.epochs_done, 'epoch')} and {plural(self.steps_done, 'step')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """The state from which a run can be resumed."""

    run: str
    """See `RunRecord.id`."""
    position: RunPosition
    model: dict[str, Tensor]
    momentum: dict[str, Tensor]
    """Momentum buffers of the optimiser by parameter."""
    average: dict[str, Tensor]
    """Moving average of the weights; empty without one."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """Weights of the best epoch, with their scales; empty if they are the current ones."""
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
        "format": str(FORMAT),
        "run": state.run,
        "checksum": str(_checksum(tensors)),
        "position": json.dumps(asdict(state.position)),
        "quantized_inputs": json.dumps(dict(state.quantized_inputs)),
    }
    write_file(folder / STATE_FILE, save(tensors, metadata))


def load_state(folder: Path, record: RunRecord | None = None) -> TrainingState:
    """Load the newest state of an interrupted run.

    Raises:
        TrainingError: The state is missing or damaged, or does not belong to `record`.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise TrainingError(f"{folder} has no {STATE_FILE} to resume from", "start a new run")
    tensors: dict[str, dict[str, Tensor]] = {group: {} for group in TENSORS}
    try:
        found, metadata = read_safetensors(path)
        version = metadata.get("format", "1")
        if version == str(FORMAT):
            if metadata["checksum"] != str(_checksum(found)):
                raise ValueError("its checksum is wrong")
            if record is not None and metadata["run"] != record.id:
                raise ValueError("it belongs to another run than state.json")
            for full_name, tensor in found.items():
                group, _, name = full_name.partition(".")
                tensors[group][name] = tensor
            return TrainingState(
                run=metadata["run"],
                position=decode(RunPosition, metadata["position"].encode()),
                quantized_inputs=decode(dict[str, str], metadata["quantized_inputs"].encode()),
                **tensors,
            )
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise TrainingError(f"{path} is damaged: {error}", "start a new run") from error
    raise other_format(path, version)


def begin_run(folder: Path, record: RunRecord, teacher: bytes | None = None) -> None:
    """Write the record of a new run to `folder`, and delete the results of an older run.

    `teacher` is the content of its file, from `pack_weights`; None without distillation.
    """
    # The old state goes first, so that an interruption cannot leave it with the new record.
    for name in (STATE_FILE, *RESULTS):
        (folder / name).unlink(missing_ok=True)
    remove_temporary_files(folder)
    save_record(folder, record)  # first, because it marks the folder as one of resdeploy
    if teacher is not None:
        write_file(folder / TEACHER_FILE, teacher)


def remove_temporary_files(folder: Path) -> None:
    """Delete the incomplete files of a process that was killed."""
    for path in folder.glob(".*.tmp-*"):
        path.unlink(missing_ok=True)


def load_teacher(folder: Path, record: RunRecord) -> ResNet:
    """Return the teacher of a run.

    Raises:
        TrainingError: Its file is missing, or is not that of the run.
    """
    path = folder / TEACHER_FILE
    if not path.is_file() or sha256_file(path) != record.teacher_sha256:
        problem = "is not the teacher of this run" if path.is_file() else "is missing"
        raise TrainingError(
            f"{path} {problem}: its SHA-256 should be {record.teacher_sha256}",
            "copy it from a backup, or start a new run",
        )
    network = ResNet(record.architecture)
    network.load_state_dict(read_safetensors(path)[0])
    return network


def save_metrics(folder: Path, metrics: Sequence[EpochMetrics]) -> None:
    """Write one JSON line per epoch."""
    lines = "".join(json.dumps(asdict(line)) + "\n" for line in metrics)
    write_file(folder / METRICS, lines.encode())


def load_metrics(folder: Path, epochs: int, *, finish: bool = False) -> list[EpochMetrics]:
    """Load the metrics of the first epochs.

    Raises:
        TrainingError: The file is damaged or lacks an epoch, or there is none to `finish` with.
    """
    if finish and not epochs:
        message = f"{folder} cannot be finished: no epoch of it has been evaluated"
        raise TrainingError(message, ways_to_go_on(folder))
    path = folder / METRICS
    try:
        data = read_limited(path, MAX_BYTES, TrainingError, "start a new run") if epochs else b""
        lines = data.decode().splitlines()
        metrics = [EpochMetrics(**strict_json(line.encode())) for line in lines[:epochs]]
        if len(metrics) < epochs:
            raise ValueError(f"it has {len(metrics)} of {epochs} epochs")
    except (OSError, TypeError, ValueError) as error:
        raise TrainingError(f"{path} is damaged: {error}", "start a new run") from error
    return metrics


def pack_weights(network: ResNet, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the content of a safetensors file with the weights of a network."""
    tensors = network.state_dict().items()
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors}
    return save(weights, dict(metadata or {}))


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
    held_out: HeldOut | None = None,
    learned: Mapping[str, float] | None = None,
) -> None:
    """Write the finished network; `model.json` comes second, because it marks a finished run.

    After quantisation-aware training, `learned` holds the largest value of each quantised tensor.
    """
    architecture = network.architecture
    metadata = {
        "arch": architecture.name,
        "architecture": json.dumps(architecture.to_json()),
        "labels": json.dumps(labels),
    }
    write_file(folder / MODEL_FILE, pack_weights(network, metadata))
    document = {
        "architecture": architecture.to_json(),
        "labels": labels,
        "preprocessing": preprocessing,
        "data": data,
        "held_out": held_out,
        "metrics": metrics,
        "training": config,
        "learned_ranges": learned,
        "provenance": provenance,
    }
    write_document(folder / MODEL_JSON, document)


def default_folder(data: str) -> Path:
    """Return `runs/NAME-DATE-TIME`, where NAME is the name of the data folder."""
    return RUNS / f"{readable(Path(data).resolve().name)}-{time.strftime('%Y%m%d-%H%M%S')}"


def unfinished_runs() -> list[Path]:
    """Return the folders in `runs/` whose training has not finished, the newest first."""
    states = [s for s in RUNS.glob(f"*/{STATE_FILE}") if not (s.parent / MODEL_JSON).exists()]
    return [s.parent for s in sorted(states, key=os.path.getmtime, reverse=True)]


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
        temporary = RUNS / ".latest.tmp-link"
        with claimed(RUNS):
            temporary.unlink(missing_ok=True)  # of a process that was killed
            temporary.symlink_to(os.path.relpath(folder.resolve(), RUNS.resolve()))
            temporary.replace(LATEST)
    except OSError as error:
        raise OutputError(f"cannot write {LATEST}: {error.strerror}", "check the folder") from error


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    """Return the CRC-32 of the tensors, which safetensors does not check."""
    checksum = 0
    for _, tensor in sorted(tensors.items()):
        checksum = zlib.crc32(tensor.numpy().tobytes(), checksum)
    return checksum
