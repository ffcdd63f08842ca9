"""Sensitivity of the logits to the quantisation of each tensor."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Encoding
from resdeploy.export.graph.qdq import integer_weights
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
    run = _runner(model, recipe, images)
    sites = sites_of(model, recipe)
    tensors = _tensors(sites)
    reference = run(())
    ratios = {}
    with progress("explaining", len(tensors)) as advance:
        for tensor in tensors:
            alone = run({site for site in sites if site.tensor == tensor})
            ratios[tensor] = float(np.median(sqnr_db(reference, alone)))
            advance(1)
    return dict(sorted(ratios.items(), key=lambda entry: entry[1]))


def explain_tensors(
    model: ir.Model, recipe: QuantizationRecipe, images: UInt8Array, progress: Progress
) -> tuple[float, tuple[TensorSensitivity, ...]]:
    """Return the median SQNR of the logits in dB with every tensor quantised, and each tensor's.

    The tensor with the lowest SQNR comes first.
    """
    run = _runner(model, recipe, images)
    sites = sites_of(model, recipe)
    tensors = _tensors(sites)
    reference = run(())
    total = sqnr_db(reference, run(sites))
    layers = []
    with progress("explaining", 2 * len(tensors)) as advance:
        for tensor in tensors:
            own = {site for site in sites if site.tensor == tensor}
            alone = run(own)
            advance(1)
            without = run(sites - own)
            advance(1)
            chosen = recipe.ranges.get(tensor)
            layers.append(
                TensorSensitivity(
                    tensor=tensor,
                    kind="activation" if chosen else "weight",
                    low=chosen.low if chosen else None,
                    high=chosen.high if chosen else None,
                    sqnr_alone_db=float(np.median(sqnr_db(reference, alone))),
                    gain_db=float(np.median(sqnr_db(reference, without) - total)),
                )
            )
    layers.sort(key=lambda layer: layer.sqnr_alone_db)
    return float(np.median(total)), tuple(layers)


def _runner(
    model: ir.Model, recipe: QuantizationRecipe, images: UInt8Array
) -> Callable[[Collection[Site]], Float32Array]:
    """Return a function that computes the logits of `images` with only the given sites rounded."""
    weights = integer_weights(model, recipe.encoding)

    def run(sites: Collection[Site]) -> Float32Array:
        return run_graph(round_at(model, recipe, sites, weights), Encoding.FLOAT, images)

    return run


def _tensors(sites: Collection[Site]) -> list[str]:
    return sorted({site.tensor for site in sites})
