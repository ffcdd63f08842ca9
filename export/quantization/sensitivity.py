"""What each quantised tensor costs: alone, and among all the others."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Encoding
from resdeploy.export.graph.coverage import Coverage, coverage
from resdeploy.export.graph.qdq import integer_weights
from resdeploy.export.quantization.recipe import QuantizationRecipe, read_recipe
from resdeploy.export.quantization.simulate import Site, answers, rounded, sites_of
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.progress import Progress, silent
from resdeploy.statistics import sqnr_db

DEFAULT_IMAGES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSensitivity:
    """One quantised tensor: an activation by its name, or a weight."""

    tensor: str
    kind: str
    """`activation` or `weight`."""
    low: float | None
    """Lower end of an activation's calibrated range; None for weights, whose channels differ."""
    high: float | None
    sqnr_alone_db: float
    """At the logits, when this tensor alone is quantised: median over the images."""
    gain_db: float
    """How much better an image's logits are when all tensors but this one are quantised: median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What `resdeploy explain` found about one INT8 graph."""

    bundle: str
    encoding: Encoding
    calibrator: str
    images: int
    sqnr_db: float
    """With every tensor quantised."""
    coverage: Coverage
    """What runs in integers at all, told from the graph."""
    layers: tuple[TensorSensitivity, ...]
    """The worst first."""


def costs_alone(
    model: ir.Model, recipe: QuantizationRecipe, images: UInt8Array, progress: Progress
) -> dict[str, float]:
    """Median SQNR at the logits, in dB, with one tensor quantised; the worst tensor first."""
    run = _with_sites(model, recipe, images)
    sites = sites_of(model, recipe)
    tensors = _tensors(sites)
    reference = run(())
    costs = {}
    with progress("explaining", len(tensors)) as advance:
        for tensor in tensors:
            alone = run({site for site in sites if site.tensor == tensor})
            costs[tensor] = float(np.median(sqnr_db(reference, alone)))
            advance(1)
    return dict(sorted(costs.items(), key=lambda cost: cost[1]))


def explain(
    bundle: Bundle,
    *,
    encoding: Encoding = Encoding.TENSORRT,
    images: int = DEFAULT_IMAGES,
    progress: Progress = silent,
) -> Explanation:
    """Measure, on golden images, what each quantised tensor of an INT8 graph costs.

    Args:
        bundle: One with INT8 graphs.
        encoding: TENSORRT for `int8.onnx`, CPU for `int8-cpu.onnx`.
        images: Golden images to use; the time grows with them.
        progress: Told of each combination.

    Raises:
        BundleError: the bundle is damaged, or has no INT8 graph.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    artifact = bundle.artifact("int8" if encoding is Encoding.TENSORRT else "int8-cpu")
    quantised = ir.from_proto(onnx.load_from_string(bundle.read(artifact.file)))
    recipe = read_recipe(bundle, encoding)
    ranges = recipe.ranges
    model = ir.from_proto(onnx.load_from_string(bundle.read("fp32.onnx")))
    pixels = bundle.golden().images[:images]
    run = _with_sites(model, recipe, pixels)
    sites = sites_of(model, recipe)
    tensors = _tensors(sites)
    reference = run(())
    total = sqnr_db(reference, run(sites))
    layers = []
    with progress("explaining", 2 * len(tensors)) as advance:
        for tensor in tensors:
            its = {site for site in sites if site.tensor == tensor}
            alone = run(its)
            advance(1)
            without = run(sites - its)
            advance(1)
            layers.append(
                TensorSensitivity(
                    tensor=tensor,
                    kind="activation" if tensor in ranges else "weight",
                    low=ranges[tensor].low if tensor in ranges else None,
                    high=ranges[tensor].high if tensor in ranges else None,
                    sqnr_alone_db=float(np.median(sqnr_db(reference, alone))),
                    gain_db=float(np.median(sqnr_db(reference, without) - total)),
                )
            )
    return Explanation(
        bundle=str(bundle.path),
        encoding=encoding,
        calibrator=recipe.calibrator,
        images=len(pixels),
        sqnr_db=float(np.median(total)),
        coverage=coverage(quantised.graph, encoding),
        layers=tuple(sorted(layers, key=lambda layer: layer.sqnr_alone_db)),
    )


def _with_sites(
    model: ir.Model, recipe: QuantizationRecipe, images: UInt8Array
) -> Callable[[Collection[Site]], Float32Array]:
    """Logits of `images` when some sites are rounded, and no others."""
    weights = integer_weights(model, recipe.encoding)

    def run(sites: Collection[Site]) -> Float32Array:
        return answers(rounded(model, recipe, sites, weights), Encoding.FLOAT, images)

    return run


def _tensors(sites: Collection[Site]) -> list[str]:
    return sorted({site.tensor for site in sites})
