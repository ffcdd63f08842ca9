"""Weights from outside: a run's folder, a .safetensors file or a torchvision .pth file.

Nothing of a file is executed: safetensors has no code, and .pth files are read with
`weights_only=True`.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from resdeploy.documents import parse
from resdeploy.errors import CheckpointError
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.storage import sha256_file
from resdeploy.train.model.architecture import Architecture, Shortcut
from resdeploy.train.model.resnet import WIDTHS, ResNet

MODEL_FILE = "model.safetensors"
MODEL_JSON = "model.json"
MAX_FILE_BYTES = 4 << 30
# Where other trainers put the weights in a .pth file, and what they put before the names.
NESTED = ("state_dict", "model", "model_state_dict")
PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")
SUFFIXES = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Weights, and what is known about them."""

    path: Path
    sha256: str
    architecture: Architecture
    state: dict[str, Tensor]
    labels: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    data: str | None = None
    """What the network was trained on: a folder, or `digits`."""
    learned_ranges: Mapping[str, float] | None = None
    """Of a network that was trained quantised: the largest value of each tensor's int8 grid."""

    def network(self) -> ResNet:
        """The network with these weights, in evaluation mode."""
        network = ResNet(self.architecture)
        network.load_state_dict(self.state, strict=True)
        return network.eval()


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a run's folder or a file of weights, and check that they fit the network.

    Raises:
        CheckpointError: the file is missing, damaged, not a state dict, or of another network.
    """
    if path.is_dir():
        return _load_run(path)
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint at {path}",
            "name a run's folder, a .safetensors or a .pth file",
        )
    if path.suffix not in SUFFIXES:
        raise CheckpointError(
            f"{path} is not a checkpoint: its ending is {path.suffix or 'missing'}",
            f"name a run's folder or a file ending in {', '.join(SUFFIXES)}",
        )
    if path.stat().st_size > MAX_FILE_BYTES:
        raise CheckpointError(
            f"{path} is larger than {MAX_FILE_BYTES >> 30} GiB", "is it the right file?"
        )
    state, metadata = (
        _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    )
    named = _name_tensors(path, state)
    architecture = _infer_architecture(path, named, metadata)
    return Checkpoint(
        path=path,
        sha256=sha256_file(path),
        architecture=architecture,
        state=_fit(path, architecture, named),
        labels=_labels(path, architecture, metadata),
    )


def _load_run(folder: Path) -> Checkpoint:
    description = folder / MODEL_JSON
    if not description.is_file():
        unfinished = (folder / "state.safetensors").exists()
        raise CheckpointError(
            f"{folder} is {'an unfinished run' if unfinished else 'not a run'}: "
            f"it has no {MODEL_JSON}",
            f"finish it with resdeploy train --resume {folder}"
            if unfinished
            else "make one with resdeploy train",
        )
    try:
        model = json.loads(description.read_bytes())
        architecture = Architecture.from_json(model["architecture"])
        preprocessing = parse(Preprocessing, model["preprocessing"])
        labels = tuple(str(label) for label in model["labels"])
        data = str(model["data"])
        learned = model.get("learned_ranges")
        if learned is not None:
            learned = {str(tensor): float(largest) for tensor, largest in learned.items()}
            if not all(0 < largest < math.inf for largest in learned.values()):
                raise ValueError("learned_ranges are not all above 0")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{description} is damaged: {error!r}", "train again, or name the weights themselves"
        ) from error
    path = folder / MODEL_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {MODEL_FILE}", "train again")
    state = _name_tensors(path, _read_safetensors(path)[0])
    if len(labels) != architecture.classes:
        raise CheckpointError(
            f"{description} has {len(labels)} labels for {architecture.classes} classes",
            "train again",
        )
    return Checkpoint(
        path=folder,
        sha256=sha256_file(path),
        architecture=architecture,
        state=_fit(path, architecture, state),
        labels=labels,
        preprocessing=preprocessing,
        data=data,
        learned_ranges=learned,
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not an intact safetensors file: {error}", "copy or download it again"
        ) from error


def _read_torch(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how the pickle was written
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise CheckpointError(
            f"{path} is not a file of weights alone, so nothing in it was executed",
            "save model.state_dict() with torch.save, or copy the file again if it is damaged",
        ) from error
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not a state dict",
            "save model.state_dict() with torch.save",
        )
    return dict(content), {}


def _name_tensors(path: Path, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors under torchvision's names; nothing is copied yet."""
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        name = PREFIXES.sub("", str(key))
        if not isinstance(value, Tensor) or not _is_plain(value):
            raise CheckpointError(
                f"{path} holds a {type(value).__name__} under {name!r}, where a plain tensor "
                "belongs",
                "save model.state_dict() with torch.save",
            )
        tensors[name] = value
    return tensors


def _is_plain(tensor: Tensor) -> bool:
    """Whether every number of it is stored, so that a small file cannot claim a huge tensor."""
    if tensor.layout is not torch.strided:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def _infer_architecture(
    path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Architecture:
    blocks = []
    for stage in range(1, len(WIDTHS) + 1):
        pattern = re.compile(rf"layer{stage}\.(\d+)\.conv1\.weight")
        blocks.append(sum(bool(pattern.fullmatch(name)) for name in state))
    head = state.get("fc.weight")
    if "layer1.0.conv3.weight" in state or not all(blocks) or head is None or head.ndim != 2:
        raise CheckpointError(
            f"{path} is not a residual network of basic blocks such as ResNet-34",
            "use the weights of ResNet-18 or ResNet-34, or of one that resdeploy trained",
        )
    projections = sum(name.endswith("downsample.0.weight") for name in state)
    if "shortcut" in metadata and metadata["shortcut"] in [option.value for option in Shortcut]:
        shortcut = Shortcut(metadata["shortcut"])
    elif projections == 0:
        raise CheckpointError(
            f"{path} has no projections, so it may have identity shortcuts or none",
            "name the run's folder, whose model.json says which",
        )
    else:
        shortcut = Shortcut.C if projections == sum(blocks) else Shortcut.B
    return Architecture(classes=len(head), blocks=tuple(blocks), shortcut=shortcut)


def _fit(path: Path, architecture: Architecture, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float32 copies, after all names and shapes were found right and all numbers finite."""
    with torch.device("meta"):
        expected = ResNet(architecture).state_dict()
    # Older files lack the counters of batch norm, which inference does not need.
    missing = [
        name for name in expected if name not in state and not name.endswith("num_batches_tracked")
    ]
    surplus = [name for name in state if name not in expected]
    wrong = [
        name for name in expected if name in state and state[name].shape != expected[name].shape
    ]
    for names, what in (
        (missing, "lacks"),
        (surplus, "has the unknown"),
        (wrong, "has the wrong shape for"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(
                f"{path} {what} {names[0]}{more}, so it is not a {architecture.name} "
                f"of {architecture.classes} classes",
                "check that it is the right file",
            )
    for name, tensor in state.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"{name} in {path} is NaN or infinite", "use an earlier checkpoint"
            )
    return {name: tensor.to(expected[name].dtype) for name, tensor in state.items()}


def _labels(
    path: Path, architecture: Architecture, metadata: Mapping[str, str]
) -> tuple[str, ...] | None:
    try:
        named = json.loads(metadata["labels"]) if "labels" in metadata else None
    except ValueError:
        named = None
    if named is None and "classes" in metadata:
        named = metadata["classes"].split()
    if not isinstance(named, list):
        return None
    if len(named) != architecture.classes:
        raise CheckpointError(
            f"{path} names {len(named)} classes and has weights for {architecture.classes}",
            "give the names with --labels",
        )
    return tuple(str(name) for name in named)
