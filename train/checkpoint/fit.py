"""The architecture that tensors have, and the check that they fit it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from resdeploy.train.checkpoint.inert_pickle import Placeholder
from resdeploy.train.checkpoint.pickled_modules import contradictions
from resdeploy.train.model.architecture import (
    STANDARD_WIDTH,
    Architecture,
    BlockType,
    Pooling,
    Shortcut,
    Stem,
)
from resdeploy.train.model.resnet import ResNet

STEMS = {7: Stem.IMAGENET, 3: Stem.CIFAR}
# Not the floats of 8 bits and less, whose weights have separate scales.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Pixels from 0 to 255 give variances of 1e3 to 1e6; all other values are smaller.
LARGEST_VALUE = 1e10
LARGEST_USUAL = 1e4  # of a linear layer and a batch norm; 1 to 5 is usual
# A recorded variance divided by the sum of the squared weights is about the mean square of the
# convolution's inputs: 0.07 to 6 in an 80 % CIFAR-10 ResNet-34, 2,900 for pixels from 0 to 255.
USUAL_POWERS = (1e-6, 1e7)
# Ternary weight networks keep about half of their weights (Li and Liu, arXiv 1605.04711, section
# 2.2); weights with a standard deviation of 0.5, which is large, keep 5 % when truncated.
TERNARY_SHARE = 0.1


class FitError(ValueError):
    """Tensors that are not those of a residual network that resdeploy builds."""


class UnusableWeightsError(FitError):
    """Tensors of other numbers than those that a training in floating point leaves."""

    hint = "give weights from before the quantisation, or from before the training diverged"


def check_kinds(tensors: Mapping[str, Any], key: Callable[[str], str]) -> dict[str, Tensor]:
    """Return the tensors, after checking that each is stored completely and in floating point.

    Raises:
        FitError: A value is no such tensor; the message names it by its `key` in the file.
    """
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or not _is_dense(value):
            kind = value.name if isinstance(value, Placeholder) else type(value).__name__
            raise UnusableWeightsError(
                f"has {key(name)!r} of type {kind}, not a dense tensor of floats"
            )
        if not (value.dtype in FLOATS or name.endswith("num_batches_tracked")):
            kind = str(value.dtype).removeprefix("torch.")
            raise UnusableWeightsError(
                f"has {key(name)} of type {kind}; weights must be float16, bfloat16, float32 or "
                "float64, not integers or quantised values"
            )
    return dict(tensors)


def _is_dense(tensor: Tensor) -> bool:
    """Return True if every element is stored, so that a small file cannot hold a huge tensor."""
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def count_blocks(body: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return the number of blocks in each stage."""
    found = [re.match(r"layer(\d+)\.(\d+)\.conv1\.weight", name) for name in body]
    stages = [int(match[1]) for match in found if match]
    return tuple(stages.count(stage) for stage in range(1, max(stages, default=0) + 1))


def count_features(body: Mapping[str, Tensor]) -> int:
    """Return the number of channels after the last block."""
    stage = f"layer{len(count_blocks(body))}.0."
    last = body.get(f"{stage}conv3.weight", body.get(f"{stage}conv2.weight"))
    if last is None or not last.ndim:
        raise FitError(f"lacks {stage}conv2.weight, a convolution")
    return len(last)


def infer_architecture(
    body: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    *,
    concatenated: bool = False,
    shortcut: Shortcut | None = None,
    stride_in_1x1: bool = False,
) -> Architecture:
    """Return the architecture with tensors of these names and shapes.

    Args:
        body: Tensors of the stem and the blocks, under torchvision's names.
        head: Tensors of the linear layers, under the names of `ResNet`.
        concatenated: True if the head's features are maxima and averages.
        shortcut: The shortcut option, if it is known.
        stride_in_1x1: True if a bottleneck's first convolution is known to have the stride.

    Raises:
        FitError: resdeploy has no such network.
    """
    stem, blocks = body.get("conv1.weight"), count_blocks(body)
    if not all(blocks):
        raise FitError(f"has no blocks in stage {blocks.index(0) + 1}")
    if stem is None or stem.ndim != 4 or stem.shape[2] not in STEMS:
        shape = "no plain convolution" if stem is None else f"one of shape {tuple(stem.shape)}"
        raise FitError(
            f"has {shape} as its first layer; a 7x7 or a 3x3 convolution is supported, not a deep "
            "stem or patches"
        )
    outputs = [len(tensor) for name, tensor in head.items() if name.endswith("weight")]
    middle, bottleneck = body.get("layer1.0.conv2.weight"), "layer1.0.conv3.weight" in body
    groups, width = 1, len(stem)
    group_width = STANDARD_WIDTH
    if bottleneck and middle is not None and middle.ndim == 4 and middle.shape[1]:
        groups = len(middle) // middle.shape[1]
        group_width = len(middle) * STANDARD_WIDTH // (width * max(groups, 1))
    projections = sum(name.endswith("downsample.0.weight") for name in body)
    if shortcut is None:
        option_b = len(blocks) - 1 + bottleneck  # one where the number of channels changes
        if projections == 0 < option_b:
            raise FitError("has no projections, so its shortcuts may be of option A or missing")
        shortcut = Shortcut.C if projections == sum(blocks) != option_b else Shortcut.B
    try:
        return Architecture(
            classes=outputs[-1],
            blocks=blocks,
            shortcut=shortcut,
            block=BlockType.BOTTLENECK if bottleneck else BlockType.BASIC,
            width=width,
            groups=groups,
            group_width=group_width,
            stride_in_1x1=stride_in_1x1 and bottleneck,
            stem=STEMS[stem.shape[2]],
            input_channels=stem.shape[1],
            pooling=Pooling.MAX_AND_AVERAGE if concatenated else Pooling.AVERAGE,
            hidden=tuple(outputs[:-1]),
        )
    except ValueError as error:
        raise FitError(f"does not hold a network that resdeploy builds: {error}") from error


def fit(
    architecture: Architecture,
    state: Mapping[str, Tensor],
    key: Callable[[str], str] = str,
    modules: Mapping[str, dict[str, object]] | None = None,
) -> dict[str, Tensor]:
    """Return float32 copies, after checking that names and shapes fit and numbers are finite.

    `modules` are the settings of `module_settings` by torchvision's names, if they are known.

    Raises:
        FitError: The tensors do not fit; the message names one by its `key` in the file.
    """
    with torch.device("meta"):
        network = ResNet(architecture)
    expected = network.state_dict()
    problems = {
        # Older files lack the step counters of batch norm, which inference does not need.
        "lacks": [n for n in expected.keys() - state if not n.endswith("num_batches_tracked")],
        "has the unknown tensor": [name for name in state if name not in expected],
        "has the wrong shape for": [
            name for name, tensor in state.items()
            if name in expected and tensor.shape != expected[name].shape
        ],
    }  # fmt: skip
    for problem, names in problems.items():
        if names:
            shown = ", ".join(sorted(map(key, names))[:3])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise FitError(
                f"{problem} {shown}{more}, so it is not a {architecture.name} "
                f"with {architecture.classes} classes"
            )
    if found := contradictions(dict(modules or {}), network):
        raise FitError(f"is not a plain {architecture.name}: {', '.join(found[:3])}")
    converted = {name: state[name].to(expected[name].dtype) for name in expected if name in state}
    # A new head or a pruned convolution may be all zeros; all are, if weights became integers.
    is_empty = not any(bool(tensor.any()) for tensor in converted.values() if tensor.ndim == 4)
    for name, tensor in converted.items():
        fault = None
        if not bool(tensor.isfinite().all()):
            fault = "NaN or infinite values"
        elif tensor.is_floating_point() and bool((tensor.abs() > LARGEST_VALUE).any()):
            fault = f"values up to {float(tensor.abs().max()):.0e}, which no training leaves,"
        elif name.endswith("running_var") and bool((tensor < 0).any()):
            fault = "negative variances"
        elif (
            tensor.ndim > 1
            and torch.equal(tensor, tensor.round())
            and (is_empty or bool(tensor.any()))
            and not _is_ternary(name, converted)
        ):
            fault = "only whole numbers, as quantised values without their scale have,"
        if fault is not None:
            raise UnusableWeightsError(f"has {fault} in {key(name)}")
    return converted


def doubts_about(state: Mapping[str, Tensor], key: Callable[[str], str]) -> list[str]:
    """Return a note that names the tensors whose values no training leaves, if there are any."""
    found = [key(name) for name in state if not _is_usual(name, state)]
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    text = f"the values of {', '.join(found[:3])}{more} are zero, or far too large or too small for"
    doubts = [f"{text} a trained network, so the predictions may be wrong"] if found else []
    if ternary := [key(name) for name in state if _is_ternary(name, state)]:
        doubts.append(
            f"{ternary[0]}{f' and {len(ternary) - 1} more' if ternary[1:] else ''} can be weights "
            "of a ternary network, as they are only -1, 0 and 1; if they were quantised and have "
            "lost their scales, the predictions are wrong"
        )
    return doubts


def _is_ternary(name: str, state: Mapping[str, Tensor]) -> bool:
    """Return True if a weight is -1, 0 and 1 only, and the network can have been trained so.

    Weights of usual networks that lost their fractions are nearly all zero.
    """
    tensor = state[name]
    if tensor.ndim < 2 or not torch.equal(tensor, tensor.sign()):
        return False
    return float(tensor.count_nonzero()) >= TERNARY_SHARE * tensor.numel() and _is_usual(
        name, state
    )


def _is_usual(name: str, state: Mapping[str, Tensor]) -> bool:
    tensor, norm = state[name], name.replace("conv", "bn").replace("downsample.0", "downsample.1")
    variance = state.get(norm.removesuffix("weight") + "running_var")
    if tensor.ndim == 4 and variance is not None:
        powers = tensor.double().square().sum((1, 2, 3))
        ratios = (variance.double() / powers)[powers > 0]
        return len(ratios) > 0 and USUAL_POWERS[0] <= float(ratios.median()) <= USUAL_POWERS[1]
    if "running" in name or not tensor.is_floating_point():
        return True
    return (tensor.ndim < 2 or bool(tensor.any())) and not (tensor.abs() > LARGEST_USUAL).any()
