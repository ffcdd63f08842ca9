"""A live module of PyTorch as a source: its graph from PyTorch's exporter, its logits its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from resdeploy.bundle.golden import Float32Array
from resdeploy.errors import ExportError
from resdeploy.export.graph.to_onnx import export_program
from resdeploy.export.source.graph_network import GraphNetwork, graph_network
from resdeploy.export.source.onnx_file import check_model
from resdeploy.filesystem import sha256
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
    program = export_program(own, torch.zeros(shape), name)
    proto = ir.to_proto(program.model)
    content = proto.SerializeToString()
    file = check_model(Path(name), proto, sha256(content))
    network = graph_network(file)
    if labels is not None and len(labels) != network.classes:
        raise ExportError(
            f"there are {len(labels)} labels, but {name} has {network.classes} classes",
            "give one label per class, in the order of the outputs",
        )

    @torch.inference_mode()
    def run(values: Float32Array) -> Float32Array:
        return np.asarray(own(torch.from_numpy(values)).numpy(), dtype=np.float32)

    stated = StatedSettings(
        settings=settings_of(preprocessing), place="the call", is_checkpoint=True
    )
    return replace(network, labels=tuple(labels) if labels else None, stated=(stated,), run=run)
