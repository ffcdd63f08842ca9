"""Checkpoint loading from run folders, .safetensors files and torchvision's .pth files.

No code in a file is executed: safetensors files hold none, and `torch_file` reads .pth files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from resdeploy.bundle.manifest import MANIFEST
from resdeploy.errors import CheckpointError, remedy_for
from resdeploy.filesystem import check_file, read_limited, sha256_file
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.json_documents import MAX_BYTES, decode
from resdeploy.readable_text import readable
from resdeploy.train.checkpoint.file_kind import refuse_foreign_file
from resdeploy.train.checkpoint.inert_pickle import Placeholder
from resdeploy.train.checkpoint.pickled_modules import module_tensors
from resdeploy.train.checkpoint.torch_file import read_torch_file
from resdeploy.train.model.architecture import Architecture, Shortcut
from resdeploy.train.model.resnet import WIDTHS, ResNet

MODEL_FILE = "model.safetensors"
MODEL_JSON = "model.json"
MAX_FILE_BYTES = 4 << 30
SUFFIXES = (".safetensors", ".pth", ".pt")
COPY_HINT = "copy or download the file again"
FORM_HINT = f"give the path of a run folder or of a file that ends in {', '.join(SUFFIXES)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The weights of a network and the facts that came with them."""

    path: Path
    sha256: str
    architecture: Architecture
    state: dict[str, Tensor]
    labels: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    data: str | None = None
    """Data that the network was trained on: a folder, or `digits`."""
    learned_ranges: Mapping[str, float] | None = None
    """After quantisation-aware training: largest representable value of each quantised tensor."""

    def network(self) -> ResNet:
        """Return the network with these weights, in evaluation mode."""
        network = ResNet(self.architecture)
        network.load_state_dict(self.state, strict=True)
        return network.eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class _ModelDocument:
    """The fields of `model.json` that are needed again."""

    architecture: dict[str, Any]
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    data: str
    learned_ranges: dict[str, float] | None = None

    def __post_init__(self) -> None:
        if self.learned_ranges and min(self.learned_ranges.values()) <= 0:
            raise ValueError("learned_ranges has a value that is not above 0")


def load_checkpoint(path: Path) -> Checkpoint:
    """Load a run folder or a file of weights, and check that the weights fit the network.

    Raises:
        CheckpointError: The file is missing or damaged, or holds another kind of network.
    """
    if path.is_dir():
        return _load_run(path)
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint at {path}",
            "give the path of a run folder, a .safetensors file or a .pth file",
        )
    if path.suffix not in SUFFIXES:
        kind = f"its suffix is {path.suffix or 'missing'}"
        if path.suffix == ".onnx":
            kind = "it is an ONNX graph, and resdeploy exports weights of PyTorch"
        raise CheckpointError(f"{path} is not a checkpoint: {kind}", FORM_HINT)
    if path.stat().st_size > MAX_FILE_BYTES:
        raise CheckpointError(
            f"{path} has {path.stat().st_size} bytes, more than {MAX_FILE_BYTES >> 30} GiB",
            "check that the path is right",
        )
    check_file(path, CheckpointError, COPY_HINT)
    read = _read_safetensors if path.suffix == ".safetensors" else _read_torch
    state, metadata = read(path)
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
            f"finish the run with resdeploy train --resume {folder}"
            if unfinished
            else "create a run with resdeploy train",
        )
    hint = f"copy the run again, or give the path of {MODEL_FILE} instead of the folder"
    data = read_limited(description, MAX_BYTES, CheckpointError, hint)
    try:
        model = decode(_ModelDocument, data)
        architecture = Architecture.from_json(model.architecture)
        if len(model.labels) != (classes := architecture.classes):
            raise ValueError(f"it has {len(model.labels)} labels for {classes} classes")
    except ValueError as error:
        raise CheckpointError(f"{description} is damaged: {error}", hint) from error
    path = folder / MODEL_FILE
    check_file(path, CheckpointError, COPY_HINT)
    state = _name_tensors(path, _read_safetensors(path)[0])
    return Checkpoint(
        path=folder,
        sha256=sha256_file(path),
        architecture=architecture,
        state=_fit(path, architecture, state),
        labels=_label_lines(model.labels),
        preprocessing=model.preprocessing,
        data=model.data,
        learned_ranges=model.learned_ranges,
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not an intact safetensors file: {error}",
            remedy_for(error, COPY_HINT),
        ) from error


def _read_torch(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    refuse_foreign_file(path)
    content = read_torch_file(path)
    for key in ("state_dict", "model", "model_state_dict"):  # keys that other programs use
        if isinstance(content, Mapping) and isinstance(content.get(key), (Mapping, Placeholder)):
            content = content[key]
    if isinstance(content, Placeholder):
        name, content = content.name, module_tensors(content)
        if not content:
            raise CheckpointError(
                f"{path} holds no network but {name}; no code in it was executed",
                "save model.state_dict() with torch.save",
            )
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{path} holds an object of type {type(content).__name__}, not a state dict",
            "save model.state_dict() with torch.save",
        )
    return dict(content), {}


def _name_tensors(path: Path, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors under torchvision's names, without copying them."""
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        # DataParallel and torch.compile add these prefixes.
        name = re.sub(r"^(module\.|_orig_mod\.)+", "", str(key))
        if not isinstance(value, Tensor) or not _is_dense(value):
            raise CheckpointError(
                f"{name!r} in {path} is of type {type(value).__name__}, not a dense tensor",
                "save model.state_dict() with torch.save",
            )
        tensors[name] = value
    return tensors


def _is_dense(tensor: Tensor) -> bool:
    """Return True if every element is stored, so that a small file cannot hold a huge tensor."""
    if tensor.layout is not torch.strided:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def _infer_architecture(
    path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Architecture:
    names = "\n".join(state)
    blocks = tuple(
        len(re.findall(rf"^layer{stage}\.\d+\.conv1\.weight$", names, re.MULTILINE))
        for stage in range(1, len(WIDTHS) + 1)
    )
    head = state.get("fc.weight")
    if "layer1.0.conv3.weight" in state or not all(blocks) or head is None or head.ndim != 2:
        raise CheckpointError(
            f"{path} does not hold a residual network of basic blocks such as ResNet-34",
            "use the weights of ResNet-18, of ResNet-34, or of a run of resdeploy train",
        )
    projections = sum(name.endswith("downsample.0.weight") for name in state)
    if metadata.get("shortcut") in [option.value for option in Shortcut]:
        shortcut = Shortcut(metadata["shortcut"])
    elif projections == 0:
        raise CheckpointError(
            f"{path} has no projections, so its shortcuts may be of option A or missing",
            f"give the path of the run folder, whose {MODEL_JSON} names the shortcuts",
        )
    else:
        shortcut = Shortcut.C if projections == sum(blocks) else Shortcut.B
    return Architecture(classes=len(head), blocks=blocks, shortcut=shortcut)


def _fit(path: Path, architecture: Architecture, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return float32 copies, after checking that names and shapes fit and numbers are finite."""
    with torch.device("meta"):
        expected = ResNet(architecture).state_dict()
    missing = [name for name in expected if name not in state]
    problems = {
        # Older files lack the step counters of batch norm, which inference does not need.
        "lacks": [name for name in missing if not name.endswith("num_batches_tracked")],
        "has the unknown tensor": [name for name in state if name not in expected],
        "has the wrong shape for": [
            name for name, tensor in state.items()
            if name in expected and tensor.shape != expected[name].shape
        ],
    }  # fmt: skip
    for problem, names in problems.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(
                f"{path} {problem} {names[0]}{more}, so it is not a {architecture.name} "
                f"with {architecture.classes} classes",
                "check that the path is right",
            )
    converted = {name: tensor.to(expected[name].dtype) for name, tensor in state.items()}
    for name, tensor in converted.items():
        fault = None
        if not bool(tensor.isfinite().all()):
            fault = "NaN or infinite values"
        elif name.endswith("running_var") and bool((tensor < 0).any()):
            fault = "negative values, and a variance cannot be negative"
        if fault is not None:
            raise CheckpointError(
                f"{name} in {path} has {fault}", "use an earlier checkpoint, or copy the file again"
            )
    return converted


def _labels(
    path: Path, architecture: Architecture, metadata: Mapping[str, str]
) -> tuple[str, ...] | None:
    try:
        labels = json.loads(metadata["labels"]) if "labels" in metadata else None
    except ValueError:
        labels = None
    if labels is None and "classes" in metadata:
        labels = metadata["classes"].split()
    if not isinstance(labels, list):
        return None
    if len(labels) != architecture.classes:
        raise CheckpointError(
            f"{path} has {len(labels)} labels for {architecture.classes} classes",
            "give the labels with --labels",
        )
    return _label_lines([str(label) for label in labels])


def _label_lines(labels: Sequence[str]) -> tuple[str, ...]:
    """Return labels that fit into one line each."""
    return tuple(readable(" ".join(label.split())) for label in labels)
