"""Heads of classifiers as linear layers with a ReLU between them.

A head may have any names. Batch norm is folded in float64 into the linear layer beside it, and
dropout does nothing in inference. Layers without weights leave only a gap in the numbering of a
`Sequential`: between two linear layers, such a gap is taken as a ReLU.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

BATCH_NORM_EPSILON = 1e-5  # default of torch.nn.BatchNorm1d
# Buffers of losses, which some trainers save with the network: weights of the classes.
_LOSS = re.compile(r"(?:^|\.)(?:criterion|\w*loss\w*)\.(?:pos_)?weight$")
_LEAVES = {"weight", "bias"}
_STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}


@dataclass(frozen=True, slots=True)
class Head:
    """Linear layers from the pooled features to the logits, with a ReLU between them."""

    layers: list[tuple[Tensor, Tensor]]
    """Weight (outputs, inputs) and bias (outputs,) of each layer."""
    names: dict[str, str]
    """The name in `ResNet` of each tensor, and its name in the file."""
    concatenated: bool
    """True if the features are maxima and averages, as in fastai."""
    notes: list[str]

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors under the names of `ResNet`."""
        return dict(zip(self.names, (tensor for layer in self.layers for tensor in layer)))


class HeadError(ValueError):
    """Tensors that are no head of linear layers."""


def read_head(
    tensors: Mapping[str, Tensor], features: int, relus: Collection[str] | None = None
) -> Head:
    """Return the head in `tensors`, all of which must belong to it.

    `features` is the number of channels after the last block; `relus` are the names of all ReLUs,
    if they are known.

    Raises:
        HeadError: There is no head, or its layers cannot be put together.
        ValueError: There is something else than linear layers and batch norms.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        modules.setdefault(module, {})[leaf] = tensor
    surplus = [
        f"{module}.{leaf}".lstrip(".")
        for module, leaves in modules.items()
        if not (_is_linear(leaves) or _is_norm(leaves))
        for leaf in leaves
    ]
    if surplus:
        more = f" and {len(surplus) - 3} more" if len(surplus) > 3 else ""
        raise ValueError(f"has the unknown tensor {', '.join(surplus[:3])}{more}")
    linear = [module for module, leaves in modules.items() if _is_linear(leaves)]
    if not linear:
        raise HeadError("has no linear layer after the blocks, so it has no classes")
    if len(modules) == 1:
        positions = [(0, linear[0])]
    else:
        positions = sorted(_position(module, linear[-1]) for module in modules)
    builder = _Builder(relus)
    for position, module in positions:
        builder.add(position, module, modules[module])
    return builder.finish(features)


def _is_linear(leaves: Mapping[str, Tensor]) -> bool:
    shape = leaves["weight"].shape if "weight" in leaves else ()
    flat = len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1))
    return flat and set(leaves) <= _LEAVES


def _is_norm(leaves: Mapping[str, Tensor]) -> bool:
    shapes = {leaves[leaf].shape for leaf in leaves if leaf != "num_batches_tracked"}
    return (
        {"running_mean", "running_var"} <= set(leaves) <= _LEAVES | _STATISTICS
        and len(shapes) == 1
        and len(shapes.pop()) == 1
    )


def _position(module: str, last: str) -> tuple[int, str]:
    """Return the place of a module in the `Sequential` that holds all of the head."""
    parent, _, index = module.rpartition(".")
    if not index.isdecimal() or parent != last.rpartition(".")[0]:
        raise HeadError(
            f"has {module} beside {last}; the order of layers, and what stands between them, is "
            "known only within one Sequential"
        )
    return int(index), module


class _Builder:
    """Linear layers that are put together in the order of their execution."""

    def __init__(self, relus: Collection[str] | None) -> None:
        self.relus = relus
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.names: list[str] = []
        self.notes: list[str] = []
        self.end = -1
        self.activated = True  # a ReLU changes nothing before the first layer
        self.scale: Tensor | None = None  # of a batch norm before the next linear layer
        self.shift: Tensor | None = None

    def add(self, position: int, name: str, leaves: Mapping[str, Tensor]) -> None:
        gap = range(self.end + 1, position)
        if gap and not self.activated and self.relus is None:
            self.activated = True
            self.notes.append(f"a ReLU is assumed after {self.names[-1]}")
        elif self.relus and any(f"{name.rpartition('.')[0]}.{n}" in self.relus for n in gap):
            self.activated = True
        self.end = position
        if "running_var" in leaves:
            self._add_norm(leaves)
        else:
            self._add_linear(name, leaves)

    def _add_norm(self, leaves: Mapping[str, Tensor]) -> None:
        mean, variance = leaves["running_mean"].double(), leaves["running_var"].double()
        scale = leaves.get("weight", torch.ones_like(mean)) / (variance + BATCH_NORM_EPSILON).sqrt()
        shift = leaves.get("bias", torch.zeros_like(mean)) - mean * scale
        if not self.activated:
            weight, bias = (tensor.double() for tensor in self.layers.pop())
            _check_inputs(len(mean), len(weight))
            self.layers.append((weight * scale[:, None], bias * scale + shift))
        elif self.scale is None:
            self.scale, self.shift = scale, shift
        else:
            raise HeadError("has two batch norms without a linear layer between them")

    def _add_linear(self, name: str, leaves: Mapping[str, Tensor]) -> None:
        weight = leaves["weight"].flatten(1)
        bias = leaves.get("bias")
        if bias is None:
            bias = weight.new_zeros(len(weight))
            if self.scale is None:
                self.notes.append(f"{name} has no bias, so zeros are taken")
        if bias.shape != weight.shape[:1]:
            raise HeadError(f"has the wrong shape for {name}.bias")
        if self.layers:
            _check_inputs(weight.shape[1], len(self.layers[-1][0]))
        if self.scale is not None and self.shift is not None:
            _check_inputs(weight.shape[1], len(self.scale))
            bias = bias.double() + weight.double() @ self.shift
            weight = weight.double() * self.scale
            self.scale = self.shift = None
        if not self.activated:
            first, first_bias = (tensor.double() for tensor in self.layers.pop())
            bias = weight.double() @ first_bias + bias.double()
            weight = weight.double() @ first
        self.layers.append((weight, bias))
        self.names = [*self.names[: len(self.layers) - 1], name]
        self.activated = False

    def finish(self, features: int) -> Head:
        if self.scale is not None:
            raise HeadError("has a batch norm after an activation at the end of its head")
        inputs = self.layers[0][0].shape[1]
        if inputs not in (features, 2 * features):
            raise HeadError(f"has a head for {inputs} features, but the blocks return {features}")
        names = {
            f"fc.{2 * n}.{leaf}" if len(self.layers) > 1 else f"fc.{leaf}": f"{name}.{leaf}"
            for n, name in enumerate(self.names)
            for leaf in ("weight", "bias")
        }
        return Head(self.layers, names, inputs == 2 * features, self.notes)


def _check_inputs(inputs: int, outputs: int) -> None:
    if inputs != outputs:
        raise HeadError(f"has a head with a layer for {inputs} features after one of {outputs}")


def drop_training_tensors(
    tensors: Mapping[str, Tensor], known: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors that are neither `known` nor weights of a loss, and the names of those."""
    others = {n: t for n, t in tensors.items() if not any(t is value for value in known.values())}
    dropped = [n for n, t in others.items() if _LOSS.search(n) and t.ndim <= 1]
    return {n: t for n, t in others.items() if n not in dropped}, dropped


def with_second_logit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with a logit of zero before the only one: its softmax is the sigmoid.

    softmax((0, z)) = (1 - sigmoid(z), sigmoid(z)), so the second class is the positive one.
    """
    last = [name for name in state if name.startswith("fc.") and name.endswith(".weight")][-1]
    names = last, last.replace("weight", "bias")
    return {**state, **{n: torch.cat([torch.zeros_like(state[n]), state[n]]) for n in names}}
