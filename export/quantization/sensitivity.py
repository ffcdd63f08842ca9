"""Sensitivity of the logits to the quantisation of each tensor."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Encoding
from resdeploy.export.quantization.recipe import QuantizationRecipe
from resdeploy.export.quantization.simulate import Site, round_at, run_graph, sites_of
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.progress import Progress
from resdeploy.statistics import sqnr_db


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSensitivity:
    """Effect of quantising one tensor, an activation or a weight."""

    tensor: str
    kind: str
    """`activation` or `weight`."""
    low: float | None
    """Lower end of an activation's range; None for a weight, which has one range per channel."""
    high: float | None
    """Upper end of an activation's range; None for a weight."""
    sqnr_alone_db: float
    """Median SQNR of the logits in dB if only this tensor is quantised."""
    gain_db: float
    """Median gain of the SQNR in dB if all tensors but this one are quantised."""


def sqnr_per_tensor(
    model: ir.Model, recipe: QuantizationRecipe, images: UInt8Array, progress: Progress
) -> dict[str, float]:
    """Return the median SQNR of the logits, in dB, with each tensor quantised alone.

    The tensor with the lowest SQNR comes first.
    """
    _, layers = explain_tensors(model, recipe, images, progress, gains=False)
    return {layer.tensor: layer.sqnr_alone_db for layer in layers}


def explain_tensors(
    model: ir.Model,
    recipe: QuantizationRecipe,
    images: UInt8Array,
    progress: Progress,
    *,
    gains: bool = True,
) -> tuple[float, tuple[TensorSensitivity, ...]]:
    """Return the median SQNR of the logits in dB with every tensor quantised, and each tensor's.

    The tensor with the lowest SQNR comes first. Without `gains`, which take half of the time, each
    gain is 0.
    """
    weights = recipe.weights(model)

    def run(rounded: Collection[Site]) -> Float32Array:
        return run_graph(round_at(model, recipe, rounded, weights), Encoding.FLOAT, images)

    sites = sites_of(model, recipe)
    tensors = sorted({site.tensor for site in sites})
    reference = run(())
    total = sqnr_db(reference, run(sites))
    layers = []
    with progress("measuring the noise of each tensor", len(tensors)) as advance:
        for tensor in tensors:
            own = {site for site in sites if site.tensor == tensor}
            chosen = recipe.ranges.get(tensor)
            layers.append(
                TensorSensitivity(
                    tensor=tensor,
                    kind="activation" if chosen else "weight",
                    low=chosen.low if chosen else None,
                    high=chosen.high if chosen else None,
                    sqnr_alone_db=float(np.median(sqnr_db(reference, run(own)))),
                    gain_db=float(np.median(sqnr_db(reference, run(sites - own)) - total))
                    if gains
                    else 0.0,
                )
            )
            advance(1)
    layers.sort(key=lambda layer: layer.sqnr_alone_db)
    return float(np.median(total)), tuple(layers)
