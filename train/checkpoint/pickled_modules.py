"""Networks in whole-model files: their weights, and the settings that the weights do not show.

Sources: torch/nn/modules/module.py (`__setstate__`, `_save_to_state_dict`) and, for TorchScript,
torch/csrc/jit/serialization/pickler.cpp of PyTorch 2.13, where all attributes are in one dict.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from resdeploy.readable_text import readable
from resdeploy.train.checkpoint.inert_pickle import Placeholder
from resdeploy.train.model.resnet import ResNet

# A pickle can hold a module many times and within itself.
MAX_ENTRIES, MAX_PREFIX, MAX_WRAPPERS = 200_000, 500, 5
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
OLD_POOLING = ("avgpool", "AvgPool2d")  # of 7x7 pixels, in torchvision before 0.3


def module_tensors(placeholder: Placeholder) -> dict[str, Any]:
    """Return the state dict of a pickled module or ScriptModule; empty if it is not one.

    Wrappers such as DataParallel and fastai's Learner are left out of the names. A value may be a
    `Placeholder` for a tensor that is not dense.
    """
    return {
        f"{prefix}{name}": value
        for prefix, module in _modules(placeholder)
        for name, value in _own_tensors(module).items()
    }


def module_settings(placeholder: Placeholder) -> dict[str, dict[str, object]]:
    """Return for each module its `class` and its settings, such as `stride` and `eps`.

    TorchScript keeps most settings in its code, which is not read.
    """
    settings: dict[str, dict[str, object]] = {}
    for prefix, module in _modules(placeholder):
        own = settings[prefix.removesuffix(".")] = {"class": module.name}
        for name, value in module.attributes().items():
            if all(isinstance(part, (int, float, str)) for part in _parts(value)):
                own.setdefault(name, value)
    return settings


def contradictions(settings: dict[str, dict[str, object]], network: ResNet) -> list[str]:
    """Return a clause for each module that computes something else than `network`.

    `settings` are those of `module_settings`, under the names of the network's modules. The order
    in which a foreign class calls its modules is in its code, and remains unknown.
    """
    modules = dict(network.named_modules())
    found = []
    for name, values in settings.items():
        kind = str(values["class"])
        last = kind.rpartition(".")[2]
        if "torch.nn.modules." in kind and last not in EXPECTED and (name, last) != OLD_POOLING:
            found.append(f"{readable(name)} is of class {last}")
            continue
        if name == "maxpool" and last in ("Identity", "MaxPool2d") and name in modules:
            own = type(modules[name]).__name__  # the only layer that is there or not
            if last != own:
                found.append(f"maxpool is of class {last} instead of {own}")
                continue
        for key in COMPARED:
            expected = getattr(modules.get(name), key, None)
            if expected is not None and key in values and _pair(values[key]) != _pair(expected):
                found.append(f"{key} of {name} is {values[key]!r:.60} instead of {expected}")
    return found


def _pair(value: object) -> object:
    return (value, value) if isinstance(value, int) else value


def _parts(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) and len(value) < 8 else (value,)


def _dict(module: Placeholder, name: str) -> dict[Any, Any]:
    value = module.attributes().get(name)
    return value if isinstance(value, dict) else {}


def _own_tensors(module: Placeholder) -> dict[Any, Any]:
    if module.name.startswith(SCRIPT):
        return {key: v for key, v in module.attributes().items() if isinstance(v, Tensor)}
    values = _dict(module, "_parameters") | _dict(module, "_buffers")
    skipped = module.attributes().get("_non_persistent_buffers_set")
    skipped = skipped if isinstance(skipped, set) else ()
    return {key: v for key, v in values.items() if v is not None and key not in skipped}


def _modules(root: Placeholder) -> list[tuple[str, Placeholder]]:
    """Return each module with the prefix of its names in the order of a state dict."""
    for _ in range(MAX_WRAPPERS):
        inner = root.attributes().get("model")
        if root.name.endswith(WRAPPERS):
            inner = next(iter(_dict(root, "_modules").values()), None)
        if isinstance(inner, Placeholder) and not root.name.startswith(SCRIPT):
            root = inner
    found, pending, entries = [], [("", root)], 0
    while pending:
        prefix, module = pending.pop()
        script = module.name.startswith(SCRIPT)
        if script or "_modules" in module.attributes():
            children = module.attributes() if script else _dict(module, "_modules")
            entries += 1 + len(children) + len(_own_tensors(module))
            if entries > MAX_ENTRIES or len(prefix) > MAX_PREFIX:
                return []
            found.append((prefix, module))
            pending += [
                (f"{prefix}{name}.", child)
                for name, child in reversed(children.items())
                if isinstance(child, Placeholder)
            ]
    return found
