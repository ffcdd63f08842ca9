"""Judgement of the INT8 graphs on images that did not calibrate them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Encoding, Quality, QualityOrigin
from resdeploy.changed_predictions import ChangedPredictions, count_changes
from resdeploy.export.quantization.calibrate import LEARNED, choose_ranges
from resdeploy.export.quantization.compensation import rounded_recipes
from resdeploy.export.quantization.held_out import HeldOutImages
from resdeploy.export.quantization.recipe import QuantizationRecipe
from resdeploy.export.quantization.result import Calibration, Fold
from resdeploy.export.quantization.simulate import run_graph
from resdeploy.progress import Progress, named
from resdeploy.statistics import sqnr_db
from resdeploy.tables import plural

logger = logging.getLogger(__name__)

ANNOUNCED_SECONDS = 60.0
IMAGES_AT_ONCE = 512  # opening the graphs then takes little of the time, also at 32 pixels


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
    calibration: Calibration,
    held_out: HeldOutImages,
    progress: Progress,
    seconds: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> Judgement | None:
    """Run FP32 and the INT8 graphs on held-out images and on the folds of the calibration images.

    On a fold, the ranges are those that the same calibrator chooses from the other images, and the
    weights are rounded on them: 80 % of the bundle's, so the graph is not better than the bundle's.
    The scales of the channels and the layers in float are the bundle's.

    The first part of the held-out images and the first fold are always judged. No other begins that
    would end after `seconds` if it took as long as the slowest of its kind; a fold includes the
    rounding of its weights. The time does not depend on the predictions, so fewer images give a
    wider bound and no other bias. Return None if there are no images.
    """
    parts = [
        held_out.part(first, first + IMAGES_AT_ONCE)
        for first in range(0, len(held_out.images), IMAGES_AT_ONCE)
    ]
    groups: list[HeldOutImages | Fold] = [*parts, *calibration.folds]
    if not groups:
        return None
    start, slowest = clock(), dict[type, float]()
    judged: list[HeldOutImages] = []
    model = calibration.model
    reference: list[Float32Array] = []
    logits: dict[Encoding, list[Float32Array]] = {encoding: [] for encoding in calibration.recipes}
    recipes: Mapping[Encoding, QuantizationRecipe]
    with progress("judging the INT8 graphs", len(groups) * (1 + len(logits))) as advance:
        for index, group in enumerate(groups):
            began, kind = clock(), type(group)
            if kind in slowest and began + slowest[kind] > start + seconds:
                continue
            if isinstance(group, Fold):
                number = f"{index - len(parts) + 1} of {len(calibration.folds)}"
                numbered = named(progress, f"to judge the INT8 graphs, {number}")
                images, recipes = group.images, _recipes(calibration, group, numbered)
            else:
                images, recipes = group, calibration.recipes
            judged.append(images)
            reference.append(run_graph(model, Encoding.FLOAT, images.images))
            advance(1)
            for encoding, recipe in recipes.items():
                graph = recipe.apply(model)
                logits[encoding].append(run_graph(graph, encoding, images.images))
                advance(1)
            slowest[kind] = max(slowest.get(kind, 0.0), clock() - began)
    everything = judged[0]
    for images in judged[1:]:
        everything = everything.plus(images)
    _report_time(len(everything.images), calibration, held_out, seconds)
    crossed = Fold in slowest
    return Judgement(
        reference=np.concatenate(reference),
        logits={encoding: np.concatenate(parts) for encoding, parts in logits.items()},
        classes=everything.classes,
        origin=QualityOrigin.CROSS_VALIDATION if crossed else QualityOrigin.HELD_OUT,
    )


def duration_line(rounding: float, folds: int, seconds: float) -> str | None:
    """Return an estimate of the duration of `judge`, and how to shorten it, if it takes minutes.

    Args:
        rounding: Seconds in which the weights of the bundle were rounded. Those of each fold are
            rounded in about this time, in which the rest of its judgement hardly counts.
        folds: Number of folds.
        seconds: Longest duration of the judgement.
    """
    judged = min(folds, max(1, math.floor(seconds / rounding))) if folds else 0
    if (total := judged * rounding) < ANNOUNCED_SECONDS:
        return None
    line = f"judging the INT8 graphs takes about {plural(round(total / 60), 'minute')}"
    return line + ("; shorter, on fewer images: --search-seconds 60" if judged > 1 else "")


def _report_time(
    judged: int, calibration: Calibration, held_out: HeldOutImages, seconds: float
) -> None:
    """Log how many images were judged if the time did not suffice for all."""
    planned = len(held_out.images) + sum(len(fold.images.images) for fold in calibration.folds)
    if judged < planned:
        weights = ", for which weights are rounded again," if calibration.folds else ""
        logger.info(
            "judged on %d of %d images: the others%s would have taken longer than "
            "--search-seconds %g", judged, planned, weights, seconds,
        )  # fmt: skip


def _recipes(
    calibration: Calibration, fold: Fold, progress: Progress
) -> dict[Encoding, QuantizationRecipe]:
    """Return the recipes with the ranges and weights that the images outside the fold give."""
    others = [other.images.images for other in calibration.folds if other is not fold]

    def with_ranges(recipe: QuantizationRecipe) -> QuantizationRecipe:
        if recipe.calibrator == LEARNED:
            return recipe
        # The DLA's ranges are chosen as the CPU's.
        like = Encoding.TENSORRT if recipe.encoding is Encoding.TENSORRT else Encoding.CPU
        chosen = choose_ranges(fold.others, recipe.calibrator, like, recipe.in_float)
        return replace(recipe, ranges=chosen.ranges)

    recipes = {encoding: with_ranges(recipe) for encoding, recipe in calibration.recipes.items()}
    images = np.concatenate(others)[: len(calibration.rounding)]
    return rounded_recipes(calibration.model, recipes, images, progress)
