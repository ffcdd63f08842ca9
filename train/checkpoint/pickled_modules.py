"""Networks in whole-model files: their weights, and their settings that weights do not show.

Sources: torch/nn/modules/module.py (`__setstate__`, `_save_to_state_dict`) and, for TorchScript,
torch/csrc/jit/serialization/pickler.cpp of PyTorch 2.13, where all attributes are in one dict.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from resdeploy.errors import CheckpointError
from resdeploy.train.checkpoint.inert_pickle import Placeholder
from resdeploy.train.model.resnet import ResNet

MAX_MODULES, MAX_PREFIX = 50_000, 500  # a pickle can hold a module many times and within itself
MAX_WRAPPERS = 5
SCRIPT = "__torch__."  # begins the names of TorchScript's classes
WRAPPERS = ("DataParallel", "DistributedDataParallel", "OptimizedModule")
# Settings that change a layer's result, if the weights are the same.
COMPARED = (
    "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "ceil_mode", "eps",
)  # fmt: skip
# Modules of PyTorch that a ResNet has, or that change nothing in inference.
EXPECTED = (
    "Conv2d", "BatchNorm2d", "SyncBatchNorm", "ReLU", "MaxPool2d", "AdaptiveAvgPool2d", "Linear",
    "AdaptiveMaxPool2d", "Flatten", "Sequential", "ModuleList", "ModuleDict", "Identity",
    "Dropout", "Dropout2d", "BatchNorm1d",
)  # fmt: skip


def module_tensors(placeholder: Placeholder) -> dict[str, Any]:
    """Return the state dict of a pickled module or ScriptModule; empty if it is not one.

    Wrappers such as DataParallel and fastai's Learner are left out of the names. A value may be a
    `Placeholder` for a tensor that is not dense.

    Raises:
        CheckpointError: The modules contain themselves.
    """
    tensors: dict[str, Any] = {}
    for prefix, attributes, _ in _modules(placeholder):
        values = _dict(attributes, "_parameters") | _dict(attributes, "_buffers")
        if "_modules" not in attributes:  # TorchScript
            values = {name: v for name, v in attributes.items() if isinstance(v, Tensor)}
        skipped = attributes.get("_non_persistent_buffers_set")
        tensors |= {
            f"{prefix}{name}": value
            for name, value in values.items()
            if value is not None and not (isinstance(skipped, set) and name in skipped)
        }
        _limit(len(tensors), prefix)
    return tensors


def module_settings(placeholder: Placeholder) -> dict[str, dict[str, object]]:
    """Return for each module its `class` and its settings, such as `stride` and `eps`.

    TorchScript keeps most settings in its code, which is not read.
    """
    return {
        prefix.removesuffix("."): {"class": kind} | {
            name: value
            for name, value in attributes.items()
            if all(isinstance(part, (int, float, str)) for part in _parts(value))
        }
        for prefix, attributes, kind in _modules(placeholder)
    }  # fmt: skip


def contradictions(settings: dict[str, dict[str, object]], network: ResNet) -> list[str]:
    """Return a clause for each module that computes something else than `network`.

    `settings` are those of `module_settings`, under the names of the network's modules. The order
    in which a foreign class calls its modules is in its code, and remains unknown.
    """
    modules = dict(network.named_modules())
    found = []
    for name, values in settings.items():
        kind = str(values["class"])
        if "torch.nn.modules." in kind and kind.rpartition(".")[2] not in EXPECTED:
            found.append(f"{name} is a {kind.rpartition('.')[2]}")
        for key in COMPARED:
            expected = getattr(modules.get(name), key, None)
            if expected is not None and key in values and _pair(values[key]) != _pair(expected):
                found.append(f"{key} of {name} is {values[key]!r} instead of {expected}")
    return found


def _pair(value: object) -> object:
    return (value, value) if isinstance(value, int) else value


def _parts(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) and len(value) < 8 else (value,)


def _dict(attributes: dict[Any, Any], name: str) -> dict[Any, Any]:
    value = attributes.get(name)
    return value if isinstance(value, dict) else {}


def _limit(count: int, prefix: str) -> None:
    if count > MAX_MODULES or len(prefix) > MAX_PREFIX:
        raise CheckpointError("the modules in it contain themselves", "save model.state_dict()")


def _modules(root: Placeholder) -> Iterator[tuple[str, dict[Any, Any], str]]:
    """Yield prefix, attributes and class of each module, in the order of a state dict."""
    for _ in range(MAX_WRAPPERS):
        inner = root.attributes().get("model")
        if root.name.endswith(WRAPPERS):
            inner = next(iter(_dict(root.attributes(), "_modules").values()), None)
        elif "_modules" in root.attributes() or root.name.startswith(SCRIPT):
            break
        if isinstance(inner, Placeholder):
            root = inner
    pending, count = [("", root)], 0
    while pending:
        prefix, module = pending.pop()
        attributes = module.attributes()
        if "_modules" not in attributes and not module.name.startswith(SCRIPT):
            continue
        _limit(count := count + 1, prefix)
        yield prefix, attributes, module.name
        children = attributes if module.name.startswith(SCRIPT) else _dict(attributes, "_modules")
        pending += [
            (f"{prefix}{name}.", child)
            for name, child in reversed(children.items())
            if isinstance(child, Placeholder)
        ]
