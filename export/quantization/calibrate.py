"""Calibration: from images to the ranges of the FP32 graph's tensors, for both encodings."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import onnx_ir as ir

from resdeploy.bundle.calibration_record import ClassBalance, Score
from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Encoding
from resdeploy.calibration.calibrators import CALIBRATORS
from resdeploy.calibration.equalization_factors import channel_factors
from resdeploy.calibration.image_set import CalibrationImages, draw
from resdeploy.calibration.observer import channel_peaks, observe
from resdeploy.calibration.ranges import Range, TensorStatistics
from resdeploy.errors import CheckpointError
from resdeploy.export.graph.equalization import channel_groups, equalize
from resdeploy.export.graph.placement import float_shortcuts, place
from resdeploy.export.graph.qdq import integer_weights
from resdeploy.export.graph.to_onnx import with_outputs
from resdeploy.export.inputs import Source
from resdeploy.export.quantization.compensation import rounding_images
from resdeploy.export.quantization.held_out import (
    held_out_images,
    require_images,
    scoring_images,
)
from resdeploy.export.quantization.recipe import QuantizationRecipe
from resdeploy.export.quantization.result import Calibration, Fold
from resdeploy.export.quantization.simulate import batch_size, run_graph
from resdeploy.export.source.network import CheckpointNetwork
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.progress import Advance, Progress, counted
from resdeploy.statistics import agreement_percent, kl_divergence, sqnr_db
from resdeploy.tables import plural

logger = logging.getLogger(__name__)

# The ranges of a fold then come from 80 % of the images, so they are little worse than those of the
# bundle. Source: Kohavi, "A study of cross-validation and bootstrap for accuracy estimation and
# model selection", IJCAI 1995, which finds a small bias from 5 folds on.
FOLDS = 5
EQUALIZING_IMAGES = 128  # more of the calibration images change the factors little
ENCODINGS = (Encoding.TENSORRT, Encoding.CPU)
LEARNED = "learned"
LONG_SECONDS = 60.0  # of a step from which on a user is told what shortens it


def calibrate(
    model: ir.Model,
    source: Source,
    *,
    calibrator: str,
    images: int,
    seed: int,
    golden_digests: Collection[str],
    progress: Progress,
    decoded: Mapping[Path, UInt8Array] = {},
    int8_shortcuts: bool = False,
    cross_validated: int = 0,
    reserve: bool = False,
) -> Calibration:
    """Run the FP32 graph on calibration images and choose the range of each tensor.

    The channels are equalised first, except those of a checkpoint that was trained with
    quantisation: its TensorRT graph takes the learned ranges. If `calibrator` names several
    calibrators (see `calibrators_named`), each is scored on other images, and each encoding takes
    the best. The `golden_digests` are the sha256 of images that must not be used.

    The first `cross_validated` calibration images are kept in folds. With `reserve`, images are
    kept from calibration for a search even if no calibrators are scored. The `decoded` images need
    not be read again.

    Raises:
        CalibrationError: There are no images, or none can be used.
        CheckpointError: The learned ranges do not fit this graph.
    """
    require_images(source, 1)
    in_float = frozenset() if int8_shortcuts else float_shortcuts(model.graph)
    learned = _learned_recipes(model, source, in_float)
    paths = draw(source.pools.calibration, seed)
    calibrators = calibrators_named(calibrator)
    scorable = scoring_images(len(paths), source.preprocessing.image_size)
    wanted_scoring = scorable if len(calibrators) > 1 or reserve else 0
    image_set = CalibrationImages(
        source.preprocessing,
        wanted=images + wanted_scoring,
        excluded=golden_digests,
        decoded=decoded,
    )
    usable = image_set.add(paths, batch_size(source.preprocessing.image_size))
    scoring, calibrating = _take(usable, wanted_scoring)
    equalizing, others = _take(calibrating, EQUALIZING_IMAGES)
    if equalizing and not learned:
        with progress("equalising channels", sum(map(len, equalizing))) as advance:
            model = _equalized(model, counted(equalizing, advance, len))
    edges = [edge for encoding in ENCODINGS for edge in place(model.graph, encoding)]
    tensors = list(dict.fromkeys(edge.range_of for edge in edges))

    most = rounding_images(source.preprocessing.size)
    rounding: list[UInt8Array] = []

    def batches() -> Iterator[UInt8Array]:
        for batch in chain(equalizing, others):
            if (missing := most - sum(map(len, rounding))) > 0:
                rounding.append(batch[:missing])
            yield batch

    with progress("calibrating", min(images, len(paths) - wanted_scoring)) as advance:
        kept, rest = _take(batches(), cross_validated)
        folds = min(FOLDS, sum(map(len, kept)))
        parts = np.array_split(np.concatenate(kept), folds) if kept else []
        by_part = _observe_parts(model, tensors, parts, rest, advance)
    statistics = _added(by_part)
    with progress("choosing ranges", 0):
        candidates = {
            (name, encoding): choose_ranges(
                statistics,
                name,
                encoding,
                in_float if encoding is Encoding.TENSORRT else frozenset(),
            )
            for name in calibrators
            for encoding in ENCODINGS
            if encoding not in learned
        }
    scores: tuple[Score, ...] = ()
    digests, paths = image_set.digests, image_set.paths
    selection = held_out_images(source, scoring, paths[:wanted_scoring], digests[:wanted_scoring])
    if len(calibrators) > 1 and len(selection.images):
        scores = _score(model, candidates.values(), selection.images, progress)
    return Calibration(
        model=model,
        recipes={
            encoding: learned.get(encoding)
            or candidates[_best_calibrator(scores, encoding, calibrators), encoding]
            for encoding in ENCODINGS
        },
        scores=scores,
        digests=tuple(digests[wanted_scoring:]),
        selection_digests=selection.digests,
        examined=tuple(image_set.examined),
        available=len(source.pools.calibration),
        scoring=selection,
        rounding=np.concatenate(rounding),
        folds=_folds(source, parts, by_part, paths[wanted_scoring:], digests[wanted_scoring:]),
        skipped={**image_set.skipped, **source.pools.passed_over},
        balance=_class_balance(source, paths[wanted_scoring:]),
        growth_percent=100 * float(np.median([tensor.growth for tensor in statistics.values()])),
        statistics=statistics,
    )


def with_dla(calibration: Calibration, calibrator: str, progress: Progress) -> Calibration:
    """Return the calibration with a recipe for the DLA, and with the scores of its calibrators.

    The ranges are chosen as for CPUs, but by the error of the DLA's own graph. The recipe keeps
    nothing in float: neither shortcuts nor the layers that a search chose.
    """
    names, images = calibrators_named(calibrator), calibration.scoring.images
    candidates = {
        name: replace(
            choose_ranges(calibration.statistics, name, Encoding.CPU, frozenset()),
            encoding=Encoding.DLA,
        )
        for name in names
    }
    scores: tuple[Score, ...] = ()
    if len(names) > 1 and len(images):
        scores = _score(calibration.model, candidates.values(), images, progress)
    recipe = replace(
        candidates[_best_calibrator(scores, Encoding.DLA, names)],
        rounded=calibration.recipes[Encoding.CPU].rounded,
    )
    return replace(
        calibration,
        recipes={**calibration.recipes, Encoding.DLA: recipe},
        scores=(*calibration.scores, *scores),
    )


def calibrators_named(name: str) -> list[str]:
    """Return the calibrators of a name: itself, a family such as `image`, or all for `auto`."""
    if name == "auto":
        return list(CALIBRATORS)
    return [known for known in CALIBRATORS if name in (known, known.split("-")[0])]


def choose_ranges(
    statistics: Mapping[str, TensorStatistics],
    calibrator: str,
    encoding: Encoding,
    in_float: frozenset[str],
) -> QuantizationRecipe:
    """Return a recipe with the calibrator's ranges that keeps the nodes `in_float` in float."""
    symmetric, choose = encoding is Encoding.TENSORRT, CALIBRATORS[calibrator]
    ranges = {tensor: choose(found, symmetric=symmetric) for tensor, found in statistics.items()}
    return QuantizationRecipe(
        encoding=encoding, calibrator=calibrator, ranges=ranges, in_float=in_float
    )


def _learned_recipes(
    model: ir.Model, source: Source, in_float: frozenset[str]
) -> dict[Encoding, QuantizationRecipe]:
    """Return TensorRT's recipe with the ranges learned in training; empty if none were learned."""
    network = source.network
    largest = network.checkpoint.learned_ranges if isinstance(network, CheckpointNetwork) else None
    if largest is None:
        return {}
    ranges = {tensor: Range(low=-largest[tensor], high=largest[tensor]) for tensor in largest}
    recipe = QuantizationRecipe(
        encoding=Encoding.TENSORRT, calibrator=LEARNED, ranges=ranges, in_float=in_float
    )
    needed = {edge.range_of for edge in recipe.edges(model)}
    if needed != set(largest):
        mismatch = min(needed ^ set(largest))
        raise CheckpointError(
            f"the learned ranges of {network.path} do not fit the network: "
            f"{mismatch} is missing or unknown",
            "train it again with --qat, and export it without --int8-shortcuts",
        )
    return {Encoding.TENSORRT: recipe}


def _take(
    batches: Iterator[UInt8Array], count: int
) -> tuple[list[UInt8Array], Iterator[UInt8Array]]:
    """Return the first `count` images, or all if there are fewer, and an iterator over the rest."""
    taken: list[UInt8Array] = []
    while count > 0 and (batch := next(batches, None)) is not None:
        taken.append(batch[:count])
        if len(batch) > count:
            batches = chain([batch[count:]], batches)
        count -= len(taken[-1])
    return taken, batches


def _equalized(model: ir.Model, batches: Iterable[UInt8Array]) -> ir.Model:
    """Return the same network with its channels rescaled to similar ranges."""
    quantised = {edge.range_of for edge in place(model.graph, Encoding.TENSORRT)}
    groups = {
        group: [tensor for tensor in group.tensors if tensor in quantised]
        for group in channel_groups(model.graph)
    }
    tensors = [tensor for members in groups.values() for tensor in members]
    peaks = channel_peaks(with_outputs(model, tensors), tensors, batches)
    factors = {
        group: channel_factors([peaks[tensor] for tensor in members])
        for group, members in groups.items()
        if members
    }
    return equalize(model, factors)


def _observe_parts(
    model: ir.Model,
    tensors: Sequence[str],
    parts: Sequence[UInt8Array],
    rest: Iterator[UInt8Array],
    advance: Advance,
) -> list[dict[str, TensorStatistics]]:
    """Return the statistics of each part, and of the batches in `rest` if there are any."""
    graph = with_outputs(model, tensors)
    found = []
    for part in parts:
        size = batch_size(part.shape[1:3])
        batches = (part[i : i + size] for i in range(0, len(part), size))
        found.append(observe(graph, tensors, counted(batches, advance, len)))
    first = next(rest, None)
    if first is not None or not parts:
        remaining = rest if first is None else chain([first], rest)
        found.append(observe(graph, tensors, counted(remaining, advance, len)))
    return found


def _added(parts: Sequence[Mapping[str, TensorStatistics]]) -> dict[str, TensorStatistics]:
    """Return the statistics over the images of all parts."""
    total = dict(parts[0])
    for part in parts[1:]:
        total = {tensor: found.plus(part[tensor]) for tensor, found in total.items()}
    return total


def _folds(
    source: Source,
    parts: Sequence[UInt8Array],
    statistics: Sequence[Mapping[str, TensorStatistics]],
    paths: Sequence[Path],
    digests: Sequence[str],
) -> tuple[Fold, ...]:
    """Return a fold for each part, unless there are no other images to calibrate on."""
    folds, end = [], 0
    for index, part in enumerate(parts):
        start, end = end, end + len(part)
        others = [found for other, found in enumerate(statistics) if other != index]
        if others:
            images = held_out_images(source, [part], paths[start:end], digests[start:end])
            folds.append(Fold(images=images, others=_added(others)))
    return tuple(folds)


def _class_balance(source: Source, paths: Sequence[Path]) -> ClassBalance | None:
    """Count the images of each class; return None if the classes are not known."""
    classes = source.classes_of(paths)
    if not classes:
        return None
    counts = np.bincount(classes, minlength=len(source.labels))
    return ClassBalance(
        represented=int(np.count_nonzero(counts)),
        classes=len(source.labels),
        fewest=int(counts.min()),
        most=int(counts.max()),
    )


def _score(
    model: ir.Model, recipes: Collection[QuantizationRecipe], images: UInt8Array, progress: Progress
) -> tuple[Score, ...]:
    """Compare the logits of each recipe's graph with those of FP32 on `images` (N, H, W, 3)."""
    reference = run_graph(model, Encoding.FLOAT, images)
    # Weights are rounded later, with compensation. Until then, reducing the pairs that saturate
    # would cost more than ranges differ. So here they may saturate, without such kernels.
    weights = integer_weights(model, Encoding.TENSORRT)
    backends = {encoding: encoding for encoding in Encoding} | {Encoding.CPU: Encoding.FLOAT}
    scores, rules = list[Score](), len({recipe.calibrator for recipe in recipes})
    start = time.monotonic()
    with progress(f"comparing {rules} rules for the INT8 ranges", len(recipes)) as advance:
        for recipe in recipes:
            quantised = recipe.apply(model, half=False, weights=weights)
            logits = run_graph(quantised, backends[recipe.encoding], images)
            scores.append(score_logits(recipe, reference, logits))
            advance(1)
            if len(scores) == 1:
                _announce(rules, len(images), (time.monotonic() - start) * len(recipes))
    return tuple(scores)


def score_logits(
    recipe: QuantizationRecipe, reference: Float32Array, logits: Float32Array
) -> Score:
    """Return the score of a graph from its logits and those of FP32, both (N, K)."""
    ratios = sqnr_db(reference, logits)
    return Score(
        calibrator=recipe.calibrator,
        encoding=recipe.encoding,
        agreement=agreement_percent(reference, logits),
        sqnr_db=float(np.median(ratios)),
        sqnr_db_p5=float(np.percentile(ratios, 5)),
        divergence=float(np.mean(kl_divergence(reference, logits))),
    )


def _announce(rules: int, images: int, seconds: float) -> None:
    """Log how long a comparison of rules takes if that is long, and what shortens an export."""
    if seconds >= LONG_SECONDS:
        logger.info(
            "comparing %d rules for the INT8 ranges on %s takes about %s; for a shorter export, "
            "stop it, and add --calibrator image (3 rules) or max (1 rule), fewer "
            "--calibration-images or a smaller --search-seconds",
            rules, plural(images, "image"), plural(round(seconds / 60), "minute"),
        )  # fmt: skip


def _best_calibrator(
    scores: Sequence[Score], encoding: Encoding, calibrators: Sequence[str]
) -> str:
    """Return the calibrator with the highest merit; the first one if there are no scores."""
    own = [score for score in scores if score.encoding is encoding]
    return max(own, key=lambda score: score.merit).calibrator if own else calibrators[0]
