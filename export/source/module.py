"""Networks of PyTorch as a source: a live module, or a program of `torch.export` in a file.

Their graph is that of PyTorch's exporter, and their logits are PyTorch's own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from resdeploy.bundle.golden import Float32Array
from resdeploy.errors import CheckpointError, ExportError
from resdeploy.export.graph.to_onnx import export_program
from resdeploy.export.source.graph_network import GraphNetwork, graph_network
from resdeploy.export.source.onnx_file import check_model
from resdeploy.export.source.program_file import MAX_BYTES, read_program
from resdeploy.filesystem import read_limited, sha256
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.images.preprocessing_choice import StatedSettings
from resdeploy.images.preprocessing_settings import settings_of


def module_network(
    module: torch.nn.Module,
    preprocessing: Preprocessing,
    labels: Sequence[str] | None,
    name: str | None = None,
) -> GraphNetwork:
    """Return a module as a network to export; the module is not changed.

    Args:
        module: Network from float32 images (N, C, H, W), normalised as `preprocessing` says, to
            logits (N, K).
        preprocessing: Settings that convert a picture to the module's input.
        labels: Names of the K classes.
        name: Name of the network; None for that of the module's class.

    Raises:
        CheckpointError: The module is no classifier of images.
        ExportError: PyTorch's exporter failed, or there are more or fewer labels than classes.
    """
    own = copy.deepcopy(module).float().cpu().eval()
    name = name or type(module).__name__
    shape = (2, len(preprocessing.mean), *preprocessing.size)
    network = _traced(own, torch.zeros(shape), Path(name), name)
    if labels is not None and len(labels) != network.classes:
        raise ExportError(
            f"there are {len(labels)} labels, but {name} has {network.classes} classes",
            "give one label per class, in the order of the outputs",
        )
    stated = StatedSettings(
        settings=settings_of(preprocessing), place="the call", is_checkpoint=True
    )
    network = replace(network, labels=tuple(labels) if labels else None, stated=(stated,))
    return _computed_by(network, own)


def program_network(path: Path) -> GraphNetwork:
    """Read a program of `torch.export`, a `.pt2` file, as a network to export.

    Raises:
        CheckpointError: The file cannot be read, or the program is no classifier of images.
        ExportError: PyTorch's exporter failed.
    """
    content = read_limited(path, MAX_BYTES, CheckpointError, "give a smaller file")
    program = read_program(content, path)
    network = _traced(program, None, path, path.stem, sha256(content))
    return _computed_by(network, program.module(check_guards=False))


def _traced(
    module: torch.nn.Module | torch.export.ExportedProgram, example: torch.Tensor | None,
    path: Path, name: str, digest: str | None = None,
) -> GraphNetwork:  # fmt: skip
    """Return the network in the graph of PyTorch's exporter."""
    proto = ir.to_proto(export_program(module, example, name).model)
    return graph_network(check_model(path, proto, digest or sha256(proto.SerializeToString())))


def _computed_by(network: GraphNetwork, module: torch.nn.Module) -> GraphNetwork:
    """Return the network with PyTorch as its reference, if the module computes logits."""
    taken, dtype = network.file.input, _dtype(module)
    if not network.gives_logits:  # the graph's logits are the input of the module's last softmax
        return network

    @torch.inference_mode()
    def run(values: Float32Array) -> Float32Array:
        images = torch.from_numpy(values).to(torch.uint8 if taken.is_uint8 else dtype)
        if taken.is_nhwc:
            images = images.permute(0, 2, 3, 1).contiguous()
        batch = taken.batch or len(images)
        logits = module(images.repeat_interleave(batch // len(images), 0))[: len(images)]
        return np.asarray(logits.float().numpy(), dtype=np.float32)

    return replace(network, run=run)


def _dtype(module: torch.nn.Module) -> torch.dtype:
    """Return the type of the weights, in which a program takes its images."""
    types = (parameter.dtype for parameter in module.parameters())
    return next(types, torch.float32)
