"""Summary of a checkpoint and of what an export would make of it: `resdeploy inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from resdeploy.export.norm_inputs import norms_with_statistics
from resdeploy.export.source.network import CheckpointNetwork
from resdeploy.export.source_preprocessing import choose_source_preprocessing
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.images.preprocessing_settings import PreprocessingSettings, option_for
from resdeploy.progress import silent
from resdeploy.train.checkpoint.contents import Weights
from resdeploy.train.checkpoint.load import load_checkpoint
from resdeploy.train.model.architecture import Architecture
from resdeploy.train.model.resnet import ResNet


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSummary:
    """The facts that a checkpoint holds and states, and the names of those that it does not."""

    path: Path
    sha256: str
    scheme: str
    """Naming scheme of the tensors."""
    place: str
    """Keys of mappings and prefix of the names that lead to the tensors in the file."""
    architecture: Architecture
    name: str
    """Name of the architecture, such as `resnet34`."""
    parameters: int
    """Number of trainable parameters, with the batch norms of the head folded."""
    features: int
    """Number of inputs of the head."""
    weights: Weights
    dtype: str
    """Type of the first convolution's weights in the file, such as `float16`."""
    batch_norms_lack_statistics: bool
    """True if all their means are 0 and all their variances 1, as before a training."""
    labels: tuple[str, ...] | None
    preprocessing: Preprocessing
    """Pre-processing that an export without options would use."""
    origins: Mapping[str, str]
    """Source of each of its settings."""
    missing: Mapping[str, str]
    """Facts that the checkpoint does not state, and the options of `export` for them."""
    notes: tuple[str, ...]
    """Sentences on what was assumed, dropped or taken."""
    schema: str = "resdeploy.inspection/1"


def inspect_checkpoint(path: Path, weights: Weights = Weights.AUTO) -> CheckpointSummary:
    """Load a checkpoint, and return what it is.

    Raises:
        CheckpointError: It cannot be exported; the message says what it is instead.
        DataError: A file beside it states a pre-processing that cannot be followed.
    """
    checkpoint = load_checkpoint(path, weights)
    architecture = checkpoint.architecture
    with torch.device("meta"):
        network = ResNet(architecture)
    head = next(tensor for name, tensor in checkpoint.state.items() if name.startswith("fc."))
    choice = choose_source_preprocessing(
        CheckpointNetwork(checkpoint), PreprocessingSettings(), None, (), None,
        seed=0, progress=silent,
    )  # fmt: skip
    missing = {name: option_for(name) for name in choice.assumed}
    if not checkpoint.labels:
        missing["labels"] = "--labels"
    return CheckpointSummary(
        path=path,
        sha256=checkpoint.sha256,
        scheme=checkpoint.scheme,
        place=checkpoint.place,
        architecture=architecture,
        name=architecture.name,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        features=head.shape[1],
        weights=Weights(checkpoint.weights),
        dtype=checkpoint.dtype,
        batch_norms_lack_statistics=not any(norms_with_statistics(checkpoint.network())),
        labels=checkpoint.labels,
        preprocessing=choice.preprocessing,
        origins=choice.origins,
        missing=missing,
        notes=checkpoint.notes,
    )
