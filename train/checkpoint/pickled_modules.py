"""Networks in whole-model files: their weights, and their settings that weights do not show.

Sources: torch/nn/modules/module.py (`__setstate__`, `_save_to_state_dict`) and, for TorchScript,
torch/csrc/jit/serialization/pickler.cpp of PyTorch 2.13, where all attributes are in one dict.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from resdeploy.train.checkpoint.inert_pickle import Placeholder, RefusedPickleError
from resdeploy.train.model.resnet import ResNet

MAX_MODULES = 100_000  # a pickle can hold one module many times, and within itself
WRAPPERS = ("DataParallel", "DistributedDataParallel", "OptimizedModule")
_SCALARS = (bool, int, float, str)


def module_tensors(placeholder: Placeholder) -> dict[str, Any]:
    """Return the state dict of a pickled module or ScriptModule; empty if it is not one.

    Wrappers such as DataParallel are left out of the names. A value may be a `Placeholder` for a
    tensor that is not dense.

    Raises:
        RefusedPickleError: The modules contain themselves.
    """
    tensors: dict[str, Any] = {}
    for prefix, module in _modules(placeholder):
        attributes = module.attributes()
        skipped = attributes.get("_non_persistent_buffers_set")
        for group in ("_parameters", "_buffers"):
            values = attributes.get(group)
            for name, value in values.items() if isinstance(values, dict) else ():
                if value is not None and not (isinstance(skipped, set) and name in skipped):
                    tensors[f"{prefix}{name}"] = value
        if "_modules" not in attributes:
            tensors |= {
                f"{prefix}{name}": value
                for name, value in attributes.items()
                if isinstance(value, Tensor)
            }
    return tensors


def module_settings(placeholder: Placeholder) -> dict[str, dict[str, object]]:
    """Return for each module its `class` and its settings, such as `stride` and `eps`.

    TorchScript keeps most settings in its code, which is not read.
    """
    settings: dict[str, dict[str, object]] = {}
    for prefix, module in _modules(placeholder):
        settings[prefix.removesuffix(".")] = {"class": module.name} | {
            name: value
            for name, value in module.attributes().items()
            if isinstance(value, _SCALARS)
            or (isinstance(value, tuple) and all(isinstance(item, _SCALARS) for item in value))
        }
    return settings


def contradictions(settings: dict[str, dict[str, object]], network: ResNet) -> list[str]:
    """Return a sentence for each module that computes something else than that of `network`.

    `settings` are those of `module_settings` under the names of the network's modules. Modules that
    the network does not have are compared by their class alone.
    """
    expected = dict(network.named_modules())
    found = []
    for name, values in settings.items():
        kind = str(values["class"]).rpartition(".")[2]
        ...
    return found


def _modules(placeholder: Placeholder) -> Iterator[tuple[str, Placeholder]]:
    """Yield each module with the prefix of its names, first the outermost."""
    pending, count = [("", placeholder)], 0
    while pending:
        prefix, module = pending.pop()
        if (count := count + 1) > MAX_MODULES:
            raise RefusedPickleError("its modules contain themselves")
        attributes = module.attributes()
        children = attributes.get("_modules", attributes)
        if not isinstance(children, dict):
            continue
        ...
