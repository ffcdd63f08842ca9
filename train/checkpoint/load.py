"""Checkpoints of any trainer, read without executing code in them.

The modules of this package work in this order: they read the file as mappings of tensors and facts,
find the networks in them by a naming scheme, convert the head to linear layers, and check that the
tensors fit the architecture that their shapes imply.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from resdeploy.errors import CheckpointError, remedy_for
from resdeploy.filesystem import open_regular, read_limited, sha256_file
from resdeploy.images.preprocessing import Channels, Preprocessing
from resdeploy.images.preprocessing_settings import PreprocessingSettings
from resdeploy.json_documents import MAX_BYTES, strict_json
from resdeploy.train.checkpoint.contents import (
    CheckpointPart,
    Weights,
    choose_network,
    find_networks,
    find_sections,
)
from resdeploy.train.checkpoint.file_kind import refuse_foreign_file, refuse_missing
from resdeploy.train.checkpoint.fit import (
    FitError,
    UnusableWeightsError,
    check_kinds,
    count_features,
    doubts_about,
    fit,
    infer_architecture,
)
from resdeploy.train.checkpoint.heads import (
    drop_training_tensors,
    read_head,
    with_second_logit,
)
from resdeploy.train.checkpoint.inert_pickle import Placeholder
from resdeploy.train.checkpoint.naming import CIFAR_SCHEMES, NamedTensors, unknown_names
from resdeploy.train.checkpoint.run import MODEL_FILE, MODEL_JSON, read_run
from resdeploy.train.checkpoint.safetensors_file import read_safetensors
from resdeploy.train.checkpoint.stated import (
    contradictions_of,
    find_normalisation,
    one_line_labels,
    read_labels_of,
    read_settings_of,
    relevant_sections,
)
from resdeploy.train.checkpoint.torch_file import read_torch_file
from resdeploy.train.model.architecture import Architecture, BlockType, Shortcut, Stem
from resdeploy.train.model.resnet import ResNet

MAX_CHECKPOINT_BYTES = 4 << 30
COPY_HINT = "copy or download the file again"
NETWORKS_HINT = "give the weights of a plain ResNet; docs/checkpoints.md lists what is read"
CONFIG = "config.json"
CONFIG_KEYS = (
    "architecture", "architectures", "downsample_in_bottleneck", "downsample_in_first_stage",
    "hidden_act", "id2label", "label_names",
)  # fmt: skip
# Names of Hugging Face and timm; an index lists the files of a network that is stored in several.
WEIGHT_FILES = (
    "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)  # fmt: skip
MAX_SHARDS = 1000
# Packed values of GPTQ, AWQ, compressed-tensors, torch.ao and bitsandbytes.
QUANTISED = re.compile(
    r"\.(qweight|qzeros|weight_packed|_packed_params|quant_state|weight\.absmax)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The weights of a network and the facts that came with them."""

    path: Path
    sha256: str
    architecture: Architecture
    state: dict[str, Tensor]
    labels: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    """Complete settings, which only a run has."""
    data: str | None = None
    """Data that the network was trained on: a folder, or `digits`."""
    learned_ranges: Mapping[str, float] | None = None
    """After quantisation-aware training: largest representable value of each quantised tensor."""
    scheme: str = "resdeploy"
    """Name of the naming scheme of the tensors in the file."""
    weights: str = Weights.RAW.value
    """`raw`, or `ema` for a moving average of the weights."""
    place: str = ""
    """Place of the tensors in the file: keys of mappings, and the prefix of their names."""
    dtype: str = "float32"
    """Type of the first convolution's weights in the file."""
    settings: PreprocessingSettings | None = None
    """Pre-processing that the file, or a configuration beside it, states."""
    settings_source: str = ""
    """Place of these settings, such as `args of model.pth`."""
    notes: tuple[str, ...] = ()
    """Sentences on what was assumed, dropped or taken."""

    def network(self) -> ResNet:
        """Return the network with these weights, in evaluation mode."""
        network = ResNet(self.architecture)
        network.load_state_dict(self.state, strict=True)
        return network.eval()

    def with_two_classes(self) -> Checkpoint:
        """Return the checkpoint of a network with one logit as that of one with two classes."""
        note = "the only logit is that of a sigmoid; its positive class is the second label"
        return replace(
            self,
            architecture=replace(self.architecture, classes=2),
            state=with_second_logit(self.state),
            notes=(*self.notes, note),
        )


def load_checkpoint(path: Path, weights: Weights = Weights.AUTO) -> Checkpoint:
    """Load a run folder or a file of weights, and check that the weights fit the network.

    Raises:
        CheckpointError: The file is missing or damaged, or holds another kind of network.
    """
    if path.is_dir():
        published = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
        if published and (path / CONFIG).is_file() and not (path / MODEL_JSON).exists():
            return replace(_load_file(published[0], weights), path=path)
        return _load_run(path, weights)
    refuse_missing(path)
    return _load_file(path, weights)


def _load_run(folder: Path, weights: Weights) -> Checkpoint:
    model, architecture = read_run(folder)
    if weights is Weights.EMA:
        raise CheckpointError(f"{folder} is a run, which has one set of weights", "omit --weights")
    path = folder / MODEL_FILE
    refuse_foreign_file(path)
    try:
        state = fit(architecture, check_kinds(_read_safetensors(path)[0], str))
    except ValueError as error:
        raise CheckpointError(f"{path} {error}", COPY_HINT) from error
    return Checkpoint(
        path=folder,
        sha256=sha256_file(path),
        architecture=architecture,
        state=state,
        labels=one_line_labels(model.labels),
        preprocessing=model.preprocessing,
        data=model.data,
        learned_ranges=model.learned_ranges,
    )


def _load_file(path: Path, weights: Weights) -> Checkpoint:
    files = _shards(path) if path.name in WEIGHT_FILES[2:] else [path]
    if (size := sum(file.stat().st_size for file in files)) > MAX_CHECKPOINT_BYTES:
        raise CheckpointError(
            f"{path} has {size} bytes, more than {MAX_CHECKPOINT_BYTES >> 30} GiB",
            "check that the path is right",
        )
    contents, digests = [_read_weights(file) for file in files], [*map(sha256_file, files)]
    content, metadata = contents[0]
    sha256 = digests[0]
    if len(files) > 1:
        parts = [part for part, _ in contents if isinstance(part, Mapping)]
        content = {name: tensor for part in parts for name, tensor in part.items()}
        if len(content) < sum(map(len, parts)):
            raise CheckpointError(f"two of the files in {path} hold the same tensor", COPY_HINT)
        sha256 = hashlib.sha256("".join(digests).encode()).hexdigest()
    try:
        return replace(_read_contents(path, content, metadata, weights), sha256=sha256)
    except ValueError as error:
        hint = getattr(error, "hint", NETWORKS_HINT)
        raise CheckpointError(f"{path} {error}", hint) from error


def _shards(index: Path) -> list[Path]:
    """Return the files that an index of Hugging Face lists, all of which are beside it.

    Source: huggingface_hub/serialization/_base.py, StateDictSplit.
    """
    try:
        document = strict_json(read_limited(index, MAX_BYTES, CheckpointError, COPY_HINT))
        names = sorted(map(str, set(document["weight_map"].values())))
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of weights", COPY_HINT) from error
    if not 0 < len(names) <= MAX_SHARDS:
        raise CheckpointError(f"{index} lists {len(names)} files, not 1 to {MAX_SHARDS}", COPY_HINT)
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*\.(safetensors|bin)", name):
            raise CheckpointError(
                f"{index} lists {name!r:.60}, which is no file of weights beside it", COPY_HINT
            )
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index} lists {name}, which is missing", COPY_HINT)
    return [index.parent / name for name in names]


def _read_weights(path: Path) -> tuple[Any, dict[str, str]]:
    """Return the content of one file, and its metadata."""
    refuse_foreign_file(path)
    with open_regular(path) as stream:
        start = stream.read(9)
    zipped = start.startswith((b"PK", b"\x80"))
    # A safetensors file starts with the length of its JSON header, in eight bytes.
    if start[8:] == b"{" or (path.suffix.lower() == ".safetensors" and not zipped):
        return _read_safetensors(path)
    return read_torch_file(path), {}


def _read_contents(
    path: Path, content: object, metadata: Mapping[str, str], weights: Weights
) -> Checkpoint:
    sections = find_sections(content)
    network, notes = choose_network(_networks(content, sections), weights)
    stated, configuration = relevant_sections(sections), _read_configuration(path)
    if metadata:
        stated = [CheckpointPart("metadata", metadata)]
    body = check_kinds(network.body, network.key)
    rest = check_kinds(_without_counters(network.rest), network.key)
    if normalisation := find_normalisation(rest):
        stated.insert(0, CheckpointPart("tensors", normalisation))
    rest, dropped = drop_training_tensors(rest, normalisation)
    _refuse_antialiased(path, [*stated, *([configuration] if configuration else [])])
    if not network.averaged and any("shadow_params" in s.values for s in sections):
        notes.append("shadow_params holds averaged weights without names, which are not used")
    if dropped:
        notes.append(f"{', '.join(dropped)} belongs to a loss and is dropped")
    found = next(s.modules for s in sections if s.place == network.place and s.tensors)
    modules = {network.module(name): values for name, values in found.items()}
    parts = {network.scheme.key(name).partition(".")[0] for name in body}
    if strange := [name for name in rest if name.partition(".")[0] in parts and "." in name]:
        raise FitError(
            f"has {', '.join(map(network.key, strange[:3]))} in its stem or its blocks, which a "
            f"plain residual network named as in {network.scheme.name} does not have"
        )
    architecture, names = _known_architecture(metadata), {}
    if architecture is None:
        relus = [name for name, values in modules.items() if str(values["class"]).endswith(".ReLU")]
        head = read_head(rest, count_features(body), relus if modules else None)
        option = metadata.get("shortcut")
        architecture = infer_architecture(
            body, head.tensors(), concatenated=head.concatenated,
            shortcut=Shortcut(option) if option in [o.value for o in Shortcut] else None,
            stride_in_1x1=_has_stride_in_1x1(configuration)
            or modules.get("layer2.0.conv1", {}).get("stride") == (2, 2),
        )  # fmt: skip
        rest, names = head.tensors(), head.names
        notes += head.notes + _assumptions(network, architecture, configuration)

    def key(name: str) -> str:
        return network.key(names.get(name, name))

    state = fit(architecture, body | rest, key, modules)
    notes += doubts_about(state, key)
    settings, source, doubts = read_settings_of(stated)
    if architecture.input_channels == 1:
        settings = replace(settings, channels=Channels.GRAY)
    stated += [configuration] if configuration else []
    labels, more_doubts = read_labels_of(stated, architecture.classes)
    has_settings = settings != PreprocessingSettings()
    checkpoint = Checkpoint(
        path=path,
        sha256="",
        architecture=architecture,
        state=state,
        labels=labels,
        scheme=network.scheme.name,
        weights=(Weights.EMA if network.averaged else Weights.RAW).value,
        place=network.where,
        dtype=str(body["conv1.weight"].dtype).removeprefix("torch."),
        settings=settings if has_settings else None,
        settings_source=f"{source or 'tensors'} of {path.name}" if has_settings else "",
        notes=(*notes, *contradictions_of(stated, architecture), *doubts, *more_doubts),
    )
    return checkpoint.with_two_classes() if architecture.classes == 1 and labels else checkpoint


def _networks(content: object, sections: list[CheckpointPart]) -> list[NamedTensors]:
    """Return the networks in a file; raise a ValueError that says why there is none."""
    if networks := find_networks(sections):
        return networks
    largest = max(sections, key=lambda section: section.tensors, default=None)
    if largest is None or not largest.tensors:
        objects = [content, *(content.values() if isinstance(content, Mapping) else ())]
        kinds = [value.name for value in objects if isinstance(value, Placeholder)]
        if isinstance(content, Mapping) and content and not kinds:
            kinds = [f"a mapping with {', '.join(f'{key!r:.40}' for key in list(content)[:3])}"]
        kind = (kinds or [f"an object of type {type(content).__name__}"])[0]
        raise ValueError(f"holds no network but {kind}; no code in it was executed")
    names = [name for name, value in largest.values.items() if isinstance(value, Tensor)]
    if quantised := [name for name in names if QUANTISED.search(name)]:
        raise UnusableWeightsError(f"holds quantised weights, such as {quantised[0]}")
    raise unknown_names(names)


def _without_counters(rest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a state dict that may change what the network computes."""
    return {
        name: value
        for name, value in rest.items()
        if ("." in name or isinstance(value, Tensor))
        # Counters, and int64 tensors of metrics; quantised weights have other types.
        and not (
            isinstance(value, Tensor)
            and not value.is_floating_point()
            and (value.numel() <= 1 or value.dtype is torch.int64)
        )
    }


def _known_architecture(metadata: Mapping[str, str]) -> Architecture | None:
    """Return the architecture in the metadata that a run writes."""
    try:
        return Architecture.from_json(strict_json(metadata["architecture"].encode()))
    except (KeyError, ValueError, TypeError):
        return None


def _read_configuration(path: Path) -> CheckpointPart | None:
    """Return the configuration that Hugging Face and timm write beside weights."""
    file = path.parent / CONFIG
    if not file.is_file():
        return None
    try:
        values = strict_json(read_limited(file, MAX_BYTES, CheckpointError, COPY_HINT))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: {error}", COPY_HINT) from error
    known = {key: values[key] for key in CONFIG_KEYS if isinstance(values, dict) and key in values}
    return CheckpointPart(CONFIG, known) if known else None


def _has_stride_in_1x1(configuration: CheckpointPart | None) -> bool:
    """Return what the configuration of Hugging Face's ResNet says; refuse other networks of it.

    Source: transformers/models/resnet/configuration_resnet.py.
    """
    values = configuration.values if configuration else {}
    if values.get("hidden_act", "relu") != "relu":
        raise ValueError(f"has the activation {values['hidden_act']!r:.40}; only relu is supported")
    if values.get("downsample_in_first_stage"):
        raise ValueError("has a first stage of stride 2 (downsample_in_first_stage in config.json)")
    return bool(values.get("downsample_in_bottleneck"))


def _refuse_antialiased(path: Path, stated: Iterable[CheckpointPart]) -> None:
    """Refuse timm's networks with the tensors of a plain one, but other strides and pooling."""
    names = [str(s.values.get(key)) for s in stated for key in ("arch", "architecture", "model")]
    for name in (path.name, *names):
        if re.match(r"resne(t|xt)(aa|blur)", name):
            raise FitError(f"is a {name:.40}, whose pooling resdeploy does not have")


def _assumptions(
    network: NamedTensors, architecture: Architecture, configuration: CheckpointPart | None
) -> list[str]:
    notes = []
    if architecture.stem is Stem.CIFAR and network.scheme.name not in CIFAR_SCHEMES:
        notes.append("the 3x3 stem is assumed to have stride 1 and no pooling after it")
    if architecture.pooling.value != "average" and network.scheme.name != "fastai":
        notes.append("the head's inputs are assumed to be maxima, then averages, as in fastai")
    if network.scheme.name == "Hugging Face" and configuration is None:
        also = "" if architecture.block is BlockType.BASIC else " with strides in the 3x3 layers"
        notes.append(f"there is no {CONFIG} beside it; a network of ReLUs{also} is assumed")
    return notes


def _read_safetensors(path: Path) -> tuple[Any, dict[str, str]]:
    try:
        return read_safetensors(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not an intact safetensors file: {error}",
            remedy_for(error, COPY_HINT),
        ) from error
