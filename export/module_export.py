"""The export of a live module of PyTorch to a bundle."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from resdeploy.export.pipeline import ExportConfig, ExportResult, export
from resdeploy.export.source.module import module_network
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.progress import Progress, silent


def export_module(
    module: torch.nn.Module,
    output: str | os.PathLike[str],
    *,
    preprocessing: Preprocessing,
    labels: Sequence[str] | None = None,
    calibration: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> ExportResult:
    """Export a module of PyTorch to a bundle; its golden logits are those of the module.

    Example: `export_module(net, "net.bundle", preprocessing=Preprocessing.standard(224),
    labels=["cat", "dog"], calibration="photos", int8=True)`.

    Args:
        module: Classifier from float32 images (N, C, H, W), normalised as `preprocessing` says, to
            logits (N, K). It is copied, and its parameters are not changed.
        output: Folder of the bundle.
        preprocessing: Settings that convert a picture to the input of the module.
        labels: Names of the K classes; None for `class 0`, `class 1` and so on.
        calibration: Folder of images to calibrate on, and to take golden images from.
        force: True to replace a bundle.
        progress: Display of the progress.
        **options: Other fields of `ExportConfig`, such as `int8`, `fp16` and `min_agreement`.

    Raises:
        ResdeployError: As for `resdeploy.export`, with a `hint`.
        TypeError: An option does not exist.
    """
    config = ExportConfig(
        source=module_network(module, preprocessing, labels),
        output=Path(output),
        calibration_data=None if calibration is None else Path(calibration),
        **options,
    )
    return export(config, force=force, progress=progress)
