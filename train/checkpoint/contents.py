"""Contents of a training checkpoint: mappings, the networks in them, and the one to take."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from resdeploy.train.checkpoint.inert_pickle import Placeholder
from resdeploy.train.checkpoint.naming import NamedTensors, name_tensors
from resdeploy.train.checkpoint.pickled_modules import module_settings, module_tensors

MAX_DEPTH = 20  # fastai's learners hold the labels at about half of it
MAX_SECTIONS = 10_000  # more than any trainer writes; bounds the time for a hostile file


class Weights(str, Enum):
    """Choice between the weights of a checkpoint and their moving average beside them."""

    AUTO = "auto"  # the average if there is one, as timm and torchvision evaluate and publish it
    RAW = "raw"
    EMA = "ema"


class SeveralNetworksError(ValueError):
    """A checkpoint with more than one network."""

    hint = "save the state dict of one of them in a file of its own"


_STATISTIC = "layer1.0.bn1.running_mean"


@dataclass(frozen=True, slots=True)
class CheckpointPart:
    """A mapping in a checkpoint."""

    place: str
    """Keys that lead to it, with dots between them; empty for the outermost one."""
    values: Mapping[str, Any]
    modules: Mapping[str, dict[str, object]] = field(default_factory=dict)
    """Classes and settings of the modules, if the mapping was a network."""

    @property
    def tensors(self) -> int:
        """Return the number of its tensors."""
        return sum(isinstance(value, Tensor) for value in self.values.values())


def find_sections(content: object) -> list[CheckpointPart]:
    """Return the mappings in a checkpoint from the outermost one inwards, each of them once."""
    sections: list[CheckpointPart] = []
    seen: set[int] = set()
    queue = deque([("", content, 0)])
    while queue and len(sections) < MAX_SECTIONS:
        place, node, depth = queue.popleft()
        if id(node) in seen or depth > MAX_DEPTH:
            continue
        seen.add(id(node))
        inner: tuple[str, ...] = ()
        if isinstance(node, Placeholder):
            if tensors := module_tensors(node):
                sections.append(CheckpointPart(place, tensors, module_settings(node)))
                inner = ("_modules", "_parameters", "_buffers")
            node = node.attributes() | (node.items if isinstance(node.items, dict) else {})
        entries = node.items() if isinstance(node, Mapping) else ()
        if entries:
            sections.append(CheckpointPart(place, {str(key): value for key, value in entries}))
        elif isinstance(node, Sequence) and not isinstance(node, (str, bytes)) and len(node) < 16:
            entries = dict(enumerate(node)).items()
        queue.extend(
            (f"{place}.{key}".lstrip("."), value, depth + 1)
            for key, value in entries
            if isinstance(value, (Mapping, Placeholder, list, tuple)) and key not in inner
        )
    return sections


def find_networks(sections: Sequence[CheckpointPart]) -> list[NamedTensors]:
    """Return every residual network in a checkpoint."""
    found = [name_tensors(section.values, section.place) for section in sections if section.tensors]
    networks = [network for networks in found for network in networks]
    if any(section.place == "current_model_state" for section in sections):
        # lightning/pytorch/callbacks/weight_averaging.py: these are raw, `state_dict` is averaged.
        networks = [replace(n, averaged=n.place.startswith("state_dict")) for n in networks]
    # A list of gradients or of averaged parameters has no statistics of the batch norms.
    complete = [network for network in networks if _is_complete(network)]
    averages = [network for network in networks if network.averaged and network not in complete]
    completed = [
        replace(average, body=raw.body | average.body, rest=raw.rest | average.rest,
                keys=raw.keys | average.keys, completed=True)
        for average in averages
        for raw in [network for network in complete if not network.averaged][:1]
        if average.scheme is raw.scheme
    ]  # fmt: skip
    return _without_copies(complete + completed) if complete else networks


def choose_network(
    networks: Sequence[NamedTensors], weights: Weights
) -> tuple[NamedTensors, list[str]]:
    """Return the network with the wanted weights, and a note if there are others beside it.

    Raises:
        ValueError: There are no such weights, or several networks.
    """
    averages = [network for network in networks if network.averaged]
    raw = [network for network in networks if not network.averaged]
    if weights is Weights.EMA and not averages:
        raise ValueError("has no moving average of its weights, which --weights ema asks for")
    if weights is Weights.RAW and not raw:
        raise ValueError(
            "has only a moving average of its weights, but --weights raw asks for others"
        )
    wanted = averages if averages and weights is not Weights.RAW else raw
    if len(wanted) > 1:
        places = " and ".join(network.where or "the file" for network in wanted[:2])
        raise SeveralNetworksError(f"holds several networks, in {places}")
    notes = []
    if wanted is averages and raw and weights is Weights.AUTO:
        notes = [
            f"of the weights in {raw[0].where or 'the file'} and their moving average in "
            f"{wanted[0].where or 'the file'}, the average is taken; --weights raw takes the others"
        ]
    if wanted[0].completed:
        notes.append("the average has no statistics of batch norms; those beside it are taken")
    return wanted[0], notes


def _is_complete(network: NamedTensors) -> bool:
    return _STATISTIC in network.body


def _without_copies(networks: Iterable[NamedTensors]) -> list[NamedTensors]:
    kept: list[NamedTensors] = []
    for network in networks:
        if not any(_is_copy(network, other) for other in kept):
            kept.append(network)
    return kept


def _is_copy(one: NamedTensors, other: NamedTensors) -> bool:
    first, second = one.body | one.rest, other.body | other.rest
    same = first.keys() == second.keys() and one.averaged == other.averaged
    return same and all(
        value is second[name]
        or (
            isinstance(value, Tensor)
            and isinstance(second[name], Tensor)
            and torch.equal(value, second[name])
        )
        for name, value in first.items()
    )
