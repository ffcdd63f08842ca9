"""Summary of a network's file and of what an export would make of it: `resdeploy inspect`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from resdeploy.export.inputs import load_network
from resdeploy.export.norm_inputs import norms_with_statistics
from resdeploy.export.source.graph_network import GraphNetwork
from resdeploy.export.source.network import CheckpointNetwork, Network
from resdeploy.export.source_preprocessing import choose_source_preprocessing
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.images.preprocessing_choice import ChosenPreprocessing
from resdeploy.images.preprocessing_settings import PreprocessingSettings, option_for
from resdeploy.progress import silent
from resdeploy.train.checkpoint.contents import Weights
from resdeploy.train.model.architecture import Architecture


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


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSummary:
    """The facts that an ONNX file or a program of `torch.export` holds."""

    path: Path
    sha256: str
    kind: str
    """`ONNX file` or `program of torch.export`."""
    operator_set: int
    """Version of ONNX's operators; for a program, of its conversion."""
    input: str
    """Type, order and sizes of the input."""
    classes: int
    constants: int
    """Number of values of the weights and of the other constants."""
    operators: Mapping[str, int]
    """Number of nodes of each operator, the most frequent ones first."""
    preprocessing: Preprocessing
    """Pre-processing that an export without options would use."""
    origins: Mapping[str, str]
    """Source of each of its settings."""
    missing: Mapping[str, str]
    """Facts that the file does not state, and the options of `export` for them."""
    notes: tuple[str, ...]
    """Sentences on what was assumed, dropped or taken."""
    schema: str = "resdeploy.graph-inspection/1"


def inspect_network(
    path: Path, weights: Weights = Weights.AUTO
) -> CheckpointSummary | GraphSummary:
    """Read a checkpoint, an ONNX file or a program of `torch.export`, and return what it is.

    Raises:
        CheckpointError: It cannot be exported; the message says what it is instead.
        DataError: A file beside it states a pre-processing that cannot be followed.
        ExportError: A graph cannot be converted.
    """
    network = load_network(path, weights)
    if isinstance(network, GraphNetwork):
        return _summarise_graph(network)
    assert isinstance(network, CheckpointNetwork)
    return _summarise_checkpoint(path, network)


def _summarise_graph(network: GraphNetwork) -> GraphSummary:
    file, taken = network.file, network.file.input
    choice, missing = _choice(network)
    side = " x ".join(map(str, taken.size)) if taken.size else "height x width"
    order = f"{side} x {taken.channels}" if taken.is_nhwc else f"{taken.channels} x {side}"
    images = taken.batch or "any number of"
    model = file.model
    return GraphSummary(
        path=network.path,
        sha256=network.sha256,
        kind="program of torch.export" if network.run else "ONNX file",
        operator_set=next(e.version for e in model.opset_import if e.domain in ("", "ai.onnx")),
        input=f"{images} images, {order}, {'uint8' if taken.is_uint8 else 'float32'}",
        classes=network.classes,
        constants=sum(math.prod(tensor.dims) for tensor in model.graph.initializer),
        operators=dict(Counter(node.op_type for node in model.graph.node).most_common()),
        preprocessing=choice.preprocessing,
        origins=choice.origins,
        missing=missing,
        notes=network.notes,
    )


def _choice(network: Network) -> tuple[ChosenPreprocessing, dict[str, str]]:
    """Return the pre-processing of an export without options, and what is not stated."""
    choice = choose_source_preprocessing(
        network, PreprocessingSettings(), None, (), None, seed=0, progress=silent
    )
    missing = {name: option_for(name) for name in choice.assumed}
    if not network.labels:
        missing["labels"] = "--labels"
    return choice, missing


def _summarise_checkpoint(path: Path, source: CheckpointNetwork) -> CheckpointSummary:
    checkpoint, architecture = source.checkpoint, source.checkpoint.architecture
    network = checkpoint.network()
    head = next(tensor for name, tensor in checkpoint.state.items() if name.startswith("fc."))
    choice, missing = _choice(source)
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
        batch_norms_lack_statistics=not any(norms_with_statistics(network)),
        labels=checkpoint.labels,
        preprocessing=choice.preprocessing,
        origins=choice.origins,
        missing=missing,
        notes=checkpoint.notes,
    )
