"""From calibration images to the ranges of one graph's tensors, for both encodings."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import onnx_ir as ir

from resdeploy.bundle.calibration_record import ClassBalance, Score
from resdeploy.bundle.manifest import Encoding
from resdeploy.calibration.calibrators import CALIBRATORS
from resdeploy.calibration.equalization import channel_factors
from resdeploy.calibration.image_set import CalibrationImages, draw
from resdeploy.calibration.observer import channel_peaks, observe
from resdeploy.calibration.ranges import Range, TensorStatistics
from resdeploy.errors import CalibrationError, CheckpointError
from resdeploy.export.graph.equalization import channel_groups, equalize
from resdeploy.export.graph.placement import float_shortcuts, place
from resdeploy.export.graph.qdq import integer_weights
from resdeploy.export.graph.to_onnx import with_outputs
from resdeploy.export.quantization.recipe import QuantizationRecipe
from resdeploy.export.quantization.result import Calibration
from resdeploy.export.quantization.simulate import answers, batch_size
from resdeploy.export.source import Source
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.progress import Progress
from resdeploy.statistics import agreement_percent, sqnr_db

SCORING_IMAGES = 128
EQUALIZING_IMAGES = 128  # of those that calibrate: more change the factors little
ENCODINGS = (Encoding.TENSORRT, Encoding.CPU)
LEARNED = "learned"


def require_images(source: Source) -> None:
    """Check before the long work that there will be something to calibrate on.

    Raises:
        CalibrationError: no images are known.
    """
    if not source.pools.calibration:
        raise CalibrationError(
            "INT8 needs images to calibrate on, and none are known for this checkpoint",
            "name a folder of typical images with --calibration-data",
        )


def calibrate(
    model: ir.Model,
    source: Source,
    *,
    calibrator: str,
    images: int,
    seed: int,
    golden_digests: Collection[str],
    progress: Progress,
    int8_shortcuts: bool = False,
) -> Calibration:
    """Show `images` pictures to the FP32 graph and let calibrators choose the ranges.

    Where the checkpoint was trained quantised, TensorRT's graph takes the ranges that it learned.

    Args:
        model: The FP32 graph; its channels are equalised first, unless ranges were learned.
        source: Where the pictures come from.
        calibrator: A name in CALIBRATORS, the part of one before the hyphen for all of a family,
            or `auto` for all. Where there are several, each is scored on other pictures, and the
            best serves; each encoding has its own.
        images: Pictures to calibrate on.
        seed: Decides which.
        golden_digests: Pictures that must not be used.
        progress: Told of each batch.
        int8_shortcuts: Whether TensorRT's graph carries the shortcuts of its blocks in INT8, too.

    Raises:
        CalibrationError: there are no pictures, or none that can be used.
        CheckpointError: the ranges that were learned are not this graph's.
    """
    require_images(source)
    in_float = frozenset() if int8_shortcuts else float_shortcuts(model.graph)
    learned = _learned(model, source, in_float)
    paths = draw(source.pools.calibration, seed)
    chosen = family(calibrator)
    spared = min(SCORING_IMAGES, len(paths) // 4) if len(chosen) > 1 else 0
    ledger = CalibrationImages(
        source.preprocessing, wanted=images + spared, excluded=golden_digests
    )
    admitted = ledger.add(paths, batch_size(source.preprocessing.image_size))
    scoring, admitted = _take(admitted, spared)
    first, rest = _take(admitted, EQUALIZING_IMAGES)
    if first and not learned:
        model = _equalized(model, first)
    edges = [edge for encoding in ENCODINGS for edge in place(model.graph, encoding)]
    tensors = list(dict.fromkeys(edge.range_of for edge in edges))

    def batches() -> Iterator[UInt8Array]:
        with progress("calibrating", min(images, len(paths) - spared)) as advance:
            for batch in chain(first, rest):
                yield batch
                advance(len(batch))

    statistics = observe(with_outputs(model, tensors), tensors, batches())
    tried = {
        (name, encoding): choose_ranges(
            statistics, name, encoding, in_float if encoding is Encoding.TENSORRT else frozenset()
        )
        for name in chosen
        for encoding in ENCODINGS
        if encoding not in learned
    }
    scores = _score(model, tried.values(), np.concatenate(scoring), progress) if spared else ()
    return Calibration(
        model=model,
        recipes={
            encoding: learned.get(encoding) or tried[_best(scores, encoding, chosen), encoding]
            for encoding in ENCODINGS
        },
        scores=scores,
        digests=tuple(ledger.digests[spared:]),
        selection_digests=tuple(ledger.digests[:spared]),
        scoring_images=sum(map(len, scoring)),
        refused=ledger.skipped,
        balance=_balance(source, ledger.paths[spared:]),
        growth_percent=100 * float(np.median([seen.growth for seen in statistics.values()])),
        statistics=statistics,
    )


def _learned(
    model: ir.Model, source: Source, in_float: frozenset[str]
) -> dict[Encoding, QuantizationRecipe]:
    """The recipe that training left; none where it was in float."""
    largest = source.checkpoint.learned_ranges
    if largest is None:
        return {}
    ranges = {tensor: Range(low=-largest[tensor], high=largest[tensor]) for tensor in largest}
    recipe = QuantizationRecipe(
        encoding=Encoding.TENSORRT, calibrator=LEARNED, ranges=ranges, in_float=in_float
    )
    needed = {edge.range_of for edge in recipe.edges(model)}
    if needed != set(largest):
        odd = min(needed ^ set(largest))
        raise CheckpointError(
            f"{source.checkpoint.path} has no learned range for the network's {odd}, or one "
            "for no tensor of it",
            "train it again with --qat, and export it without --int8-shortcuts",
        )
    return {Encoding.TENSORRT: recipe}


def _take(
    batches: Iterator[UInt8Array], count: int
) -> tuple[list[UInt8Array], Iterator[UInt8Array]]:
    """The first `count` images or all that there are, and an iterator over the others."""
    taken: list[UInt8Array] = []
    while count > 0 and (batch := next(batches, None)) is not None:
        taken.append(batch[:count])
        count -= len(taken[-1])
        if len(rest := batch[len(taken[-1]) :]):
            batches = chain([rest], batches)
    return taken, batches


def _equalized(model: ir.Model, batches: Sequence[UInt8Array]) -> ir.Model:
    """The same network, with channels that use the grids of their tensors alike."""
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


def family(calibrator: str) -> list[str]:
    """The names in CALIBRATORS that are meant by `auto`, a family's name, or a name."""
    if calibrator == "auto":
        return list(CALIBRATORS)
    return [name for name in CALIBRATORS if calibrator in (name, name.split("-")[0])]


def choose_ranges(
    statistics: Mapping[str, TensorStatistics],
    calibrator: str,
    encoding: Encoding,
    in_float: frozenset[str],
) -> QuantizationRecipe:
    """Quantised but for `in_float`, with the ranges that the calibrator of that name gives."""
    symmetric = encoding is Encoding.TENSORRT
    rule = CALIBRATORS[calibrator]
    ranges = {tensor: rule(seen, symmetric=symmetric) for tensor, seen in statistics.items()}
    return QuantizationRecipe(
        encoding=encoding, calibrator=calibrator, ranges=ranges, in_float=in_float
    )


def _balance(source: Source, paths: Sequence[Path]) -> ClassBalance | None:
    classes = source.classes_of(paths)
    if not classes:
        return None
    counts = np.bincount(classes, minlength=len(source.labels))
    return ClassBalance(
        seen=int(np.count_nonzero(counts)),
        of=len(source.labels),
        fewest=int(counts.min()),
        most=int(counts.max()),
    )


def _score(
    model: ir.Model, recipes: Collection[QuantizationRecipe], images: UInt8Array, progress: Progress
) -> tuple[Score, ...]:
    reference = answers(model, Encoding.FLOAT, images)
    weights = {encoding: integer_weights(model, encoding) for encoding in ENCODINGS}
    scores = []
    with progress("scoring", len(recipes)) as advance:
        for recipe in recipes:
            quantised = recipe.apply(model, half=False, weights=weights[recipe.encoding])
            logits = answers(quantised, recipe.encoding, images)
            ratios = sqnr_db(reference, logits)
            scores.append(
                Score(
                    calibrator=recipe.calibrator,
                    encoding=recipe.encoding,
                    agreement=agreement_percent(reference, logits),
                    sqnr_db=float(np.median(ratios)),
                    sqnr_db_p5=float(np.percentile(ratios, 5)),
                )
            )
            advance(1)
    return tuple(scores)


def _best(scores: Sequence[Score], encoding: Encoding, chosen: Sequence[str]) -> str:
    """The calibrator of highest merit; without scores the first one."""
    own = [score for score in scores if score.encoding is encoding]
    return max(own, key=lambda score: score.merit).calibrator if own else chosen[0]
