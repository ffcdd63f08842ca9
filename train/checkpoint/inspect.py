"""Summary of what a checkpoint is: `resdeploy inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from resdeploy.json_documents import jsonable
from resdeploy.train.checkpoint.load import Checkpoint, load_checkpoint
from resdeploy.train.model.architecture import Architecture
from resdeploy.train.model.resnet import ResNet

RUN = "model.json of the run"
# Facts that an export needs: the settings of which one must be stated, and the options for them.
_FACTS = (
    ("image size", ("image_size",), "--image-size"),
    ("resize and crop", ("resize", "resize_mode", "crop_fraction"), "--resize, --crop-fraction"),
    ("interpolation", ("interpolation",), "--interpolation"),
    ("mean and std", ("mean",), "--mean, --std"),
    ("channel order", ("channels",), "--channels"),
    ("value range", ("value_range", "mean"), "--value-range"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSummary:
    """What a checkpoint holds and states, and what it does not state."""

    path: Path
    sha256: str
    scheme: str
    """Naming scheme of the tensors."""
    architecture: Architecture
    name: str
    """Name of the architecture, such as `resnet34`."""
    parameters: int
    """Number of trainable parameters, with batch norms of the head folded."""
    features: int
    """Number of inputs of the head."""
    weights: str
    """`raw`, or `ema` for a moving average of the weights."""
    dtype: str
    """Type of the first convolution's weights in the file, such as `float16`."""
    labels: tuple[str, ...] | None
    preprocessing: Mapping[str, Any]
    """Stated settings of the pre-processing, by the names in the manifest."""
    preprocessing_source: str | None
    """Where these settings stand; None if there are none."""
    missing: Mapping[str, str]
    """Facts that are not stated, and the options of `export` that state them."""
    notes: tuple[str, ...]
    """Sentences on what was assumed, dropped or taken."""


def inspect_checkpoint(path: Path) -> CheckpointSummary:
    """Load a checkpoint, and return what it is.

    Raises:
        CheckpointError: It cannot be exported; the message says what it is instead.
    """
    checkpoint = load_checkpoint(path)
    architecture = checkpoint.architecture
    with torch.device("meta"):
        network = ResNet(architecture)
    head = next(tensor for name, tensor in checkpoint.state.items() if name.startswith("fc."))
    return CheckpointSummary(
        path=path,
        sha256=checkpoint.sha256,
        scheme=checkpoint.scheme,
        architecture=architecture,
        name=architecture.name,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        features=head.shape[1],
        weights=checkpoint.weights,
        dtype=checkpoint.dtype,
        labels=checkpoint.labels,
        preprocessing=(stated := _stated_settings(checkpoint)),
        preprocessing_source=RUN if checkpoint.preprocessing else checkpoint.settings_source or None,
        missing=_missing_facts(checkpoint, stated),
        notes=checkpoint.notes,
    )


def _stated_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    settings = checkpoint.preprocessing or checkpoint.settings
    values = jsonable(settings) if settings else {}
    return {name: value for name, value in values.items() if value is not None}


def _missing_facts(checkpoint: Checkpoint, stated: Mapping[str, Any]) -> dict[str, str]:
    missing = {fact: options for fact, names, options in _FACTS if stated.keys().isdisjoint(names)}
    if checkpoint.preprocessing:
        missing = {}
    return missing if checkpoint.labels else missing | {"labels": "--labels"}
