"""Judgement of the INT8 graphs on images that did not calibrate them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Encoding, Quality, QualityOrigin
from resdeploy.changed_predictions import ChangedPredictions, count_changes
from resdeploy.export.quantization.calibrate import LEARNED, choose_ranges
from resdeploy.export.quantization.held_out import HeldOutImages
from resdeploy.export.quantization.recipe import QuantizationRecipe
from resdeploy.export.quantization.result import Calibration, Fold
from resdeploy.export.quantization.simulate import run_graph
from resdeploy.progress import Progress
from resdeploy.statistics import sqnr_db


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Logits of FP32 and of the INT8 graphs on the same images."""

    reference: Float32Array
    """FP32's logits (N, K)."""
    logits: Mapping[Encoding, Float32Array]
    """Logits (N, K) of each INT8 graph."""
    classes: npt.NDArray[np.int64] | None
    """True classes (N,); None if they are not known."""
    origin: QualityOrigin

    def changes(self, encoding: Encoding) -> ChangedPredictions:
        """Return the predictions that the INT8 graph changes."""
        return count_changes(self.reference, self.logits[encoding], self.classes)

    def quality(self, encoding: Encoding) -> Quality:
        """Return the quality of the INT8 graph."""
        return Quality(
            images=len(self.reference),
            agreement=self.changes(encoding).agreement,
            sqnr_db=float(np.median(sqnr_db(self.reference, self.logits[encoding]))),
            origin=self.origin,
        )


def judge(
    calibration: Calibration, held_out: HeldOutImages, progress: Progress
) -> Judgement | None:
    """Run FP32 and the INT8 graphs on held-out images and on the folds of the calibration images.

    On a fold, the ranges are those that the same calibrator chooses from the other images: 80 % of
    the bundle's, so the graph is not better than the bundle's. The scales of the channels and the
    layers in float are the bundle's. Return None if there are no images.
    """
    groups: list[tuple[HeldOutImages, Mapping[Encoding, QuantizationRecipe]]] = [
        (held_out, calibration.recipes)
    ]
    groups += [(fold.images, _recipes(calibration, fold)) for fold in calibration.folds]
    groups = [group for group in groups if len(group[0].images)]
    if not groups:
        return None
    model = calibration.model
    reference: list[Float32Array] = []
    logits: dict[Encoding, list[Float32Array]] = {encoding: [] for encoding in calibration.recipes}
    with progress("judging", len(groups) * (1 + len(logits))) as advance:
        for images, recipes in groups:
            reference.append(run_graph(model, Encoding.FLOAT, images.images))
            advance(1)
            for encoding, recipe in recipes.items():
                graph = recipe.apply(model, half=False)
                logits[encoding].append(run_graph(graph, encoding, images.images))
                advance(1)
    everything = groups[0][0]
    for images, _ in groups[1:]:
        everything = everything.plus(images)
    crossed = bool(calibration.folds)
    return Judgement(
        reference=np.concatenate(reference),
        logits={encoding: np.concatenate(parts) for encoding, parts in logits.items()},
        classes=everything.classes,
        origin=QualityOrigin.CROSS_VALIDATION if crossed else QualityOrigin.HELD_OUT,
    )


def _recipes(calibration: Calibration, fold: Fold) -> dict[Encoding, QuantizationRecipe]:
    """Return the recipes with the ranges that the images outside the fold give."""

    def recipe_of(recipe: QuantizationRecipe) -> QuantizationRecipe:
        if recipe.calibrator == LEARNED:
            return recipe
        # The DLA's graph has the CPU's ranges.
        like = Encoding.TENSORRT if recipe.encoding is Encoding.TENSORRT else Encoding.CPU
        chosen = choose_ranges(fold.others, recipe.calibrator, like, recipe.in_float)
        return replace(recipe, ranges=chosen.ranges)

    return {encoding: recipe_of(recipe) for encoding, recipe in calibration.recipes.items()}
