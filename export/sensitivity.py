"""What each quantised tensor costs: alone, and among all the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from resdeploy.bundle import Bundle, Encoding
from resdeploy.export.coverage import Coverage, coverage
from resdeploy.export.recipe import Recipe, read_recipe
from resdeploy.export.switches import SwitchedGraph
from resdeploy.preprocessing import UInt8Array
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
    model: ir.Model, recipe: Recipe, images: UInt8Array, progress: Progress
) -> dict[str, float]:
    """Median SQNR at the logits, in dB, with one tensor quantised; the worst tensor first."""
    with SwitchedGraph(model, recipe) as graph:
        tensors = list(dict.fromkeys(site.tensor for site in graph.sites))
        reference = graph.run(images, lambda _: False)
        costs = {}
        with progress("explaining", len(tensors)) as advance:
            for tensor in tensors:
                its = {site for site in graph.sites if site.tensor == tensor}
                alone = graph.run(images, its.__contains__)
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
    with SwitchedGraph(model, recipe) as graph:
        tensors = list(dict.fromkeys(site.tensor for site in graph.sites))
        reference = graph.run(pixels, lambda _: False)
        total = sqnr_db(reference, graph.run(pixels, lambda _: True))
        layers = []
        with progress("explaining", 2 * len(tensors)) as advance:
            for tensor in tensors:
                its = {site for site in graph.sites if site.tensor == tensor}
                alone = graph.run(pixels, its.__contains__)
                advance(1)
                without = graph.run(pixels, (set(graph.sites) - its).__contains__)
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
