"""Verdict about a target: what the judgement of the INT8 graphs shows with 95 % confidence."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from resdeploy.bundle.calibration_record import TargetResult, target_sentence
from resdeploy.bundle.manifest import Artifact, Encoding, ExportWarning, Precision, graph_name
from resdeploy.bundle.quality import IN_FLOAT
from resdeploy.changed_predictions import ChangedPredictions
from resdeploy.export.mixed_precision.accuracy_target import AccuracyTarget
from resdeploy.export.mixed_precision.tradeoff import Stopwatch, measure_ms
from resdeploy.export.quantization.judge import Judgement
from resdeploy.export.quantization.result import Calibration
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.statistics import Verdict, fewest_images, interval_verdict

MAX_DECIDING_IMAGES = 200_000
# If fewer than half of the measurements were above the limit in truth, all five would be with a
# probability of 1/32 at most.
MEASUREMENTS = 5
MORE_TIME = "allow more time with --search-seconds"


def judge_accuracy(judgement: Judgement, target: AccuracyTarget) -> tuple[TargetResult, ...]:
    """Return the verdict of each limit for every graph that a search may change.

    No image of the judgement chose a range, a calibrator or a layer. So the bounds hold however
    many mixtures the search tried. A target that is met by every graph needs no further correction:
    that it is said of all graphs is wrong at most as often as that it is said of the worst one.
    """
    results = []
    for encoding in (Encoding.TENSORRT, Encoding.CPU):
        changes = judgement.changes(encoding)
        agreement = changes.agreement, changes.lowest_agreement(), agreement_verdict
        drop = changes.drop, changes.highest_drop(), drop_verdict
        results += [
            TargetResult(
                encoding=encoding,
                option=option,
                limit=limit,
                figure=figure,
                bound=bound,
                samples=changes.images,
                origin=judgement.origin,
                images_to_decide=images_for_target(changes, verdict_of, limit),
                verdict=verdict_of(changes, limit),
            )
            for option, limit, (figure, bound, verdict_of) in (
                ("--min-agreement", target.min_agreement, agreement),
                ("--max-drop", target.max_drop, drop),
            )
            if limit is not None
        ]
    return tuple(results)


def agreement_verdict(changes: ChangedPredictions, limit: float) -> Verdict:
    """Return the verdict of the check that the agreement is at least `limit` percent."""
    return interval_verdict(-changes.highest_agreement(), -changes.lowest_agreement(), -limit)


def drop_verdict(changes: ChangedPredictions, limit: float) -> Verdict:
    """Return the verdict of the check that the drop is at most `limit` percentage points."""
    return interval_verdict(changes.lowest_drop(), changes.highest_drop(), limit)


def images_for_target(
    changes: ChangedPredictions,
    verdict_of: Callable[[ChangedPredictions, float], Verdict],
    limit: float,
) -> int | None:
    """Estimate how many images would decide, rounded up to two digits.

    Changes are expected to stay as frequent as now. The result is None if the verdict is decided,
    or more than `MAX_DECIDING_IMAGES` are needed.
    """

    def decide(images: int) -> bool:
        share = images / changes.images
        counts = (round(share * count) for count in (changes.changed, changes.lost, changes.gained))
        changed, lost, gained = counts
        scaled = replace(changes, images=images, changed=changed, lost=lost, gained=gained)
        return verdict_of(scaled, limit) is not Verdict.INCONCLUSIVE

    if decide(changes.images):
        return None
    return fewest_images(decide, changes.images, MAX_DECIDING_IMAGES)


def judge_latency(
    calibration: Calibration,
    target_ms: float,
    image: UInt8Array,
    stopwatch: Stopwatch = measure_ms,
) -> TargetResult:
    """Measure the chosen CPU graph again, because the search prefers graphs that seemed fast.

    The target is held if all measurements are within it, and missed if none is.
    """
    graph = calibration.recipes[Encoding.CPU].apply(calibration.model)
    times = sorted(stopwatch(graph, Encoding.CPU, image) for _ in range(MEASUREMENTS))
    return TargetResult(
        encoding=Encoding.CPU,
        option="--target-ms",
        limit=target_ms,
        figure=times[MEASUREMENTS // 2],
        bound=times[-1],
        samples=MEASUREMENTS,
        origin=None,
        images_to_decide=None,
        verdict=interval_verdict(times[0], times[-1], target_ms),
    )


def target_warnings(
    results: Sequence[TargetResult], unfinished: Collection[Encoding]
) -> list[ExportWarning]:
    """Return a warning for each target that is not held.

    `unfinished` are the graphs whose search for layers ran out of time.
    """
    return [
        ExportWarning(
            message=target_sentence(result),
            hint=_remedy(result, out_of_time=result.encoding in unfinished),
            artifacts=(graph_name("int8", result.encoding),),
        )
        for result in results
        if result.verdict is not Verdict.PASS
    ]


def float_warnings(
    artifacts: Sequence[Artifact], *, searched: bool, unfinished: Collection[Encoding]
) -> list[ExportWarning]:
    """Return a warning for each INT8 graph that computes most convolutions in float.

    Args:
        artifacts: The graphs.
        searched: True if the search for a target decided which layers stay in float.
        unfinished: The graphs whose search ran out of time.
    """
    hint = f"relax the target, or {IN_FLOAT}" if searched else IN_FLOAT
    return [
        ExportWarning(
            message=f"{artifact.file} computes {artifact.convs - artifact.int8_convs} of "
            f"{artifact.convs} convolutions in float, so it is hardly smaller or faster than a "
            "graph in float",
            hint=f"{MORE_TIME}, {hint}" if artifact.encoding in unfinished else hint,
            artifacts=(artifact.name,),
        )
        for artifact in artifacts
        if artifact.precision is Precision.INT8 and 2 * artifact.int8_convs < artifact.convs
    ]


def too_few_images(target: AccuracyTarget, images: int) -> list[str]:
    """Return a sentence for each limit that so many images cannot show, whatever they show."""
    return [
        f"no number of images can show {limit}"
        if needed is None
        else f"{limit} needs {needed:,} images without a changed class to be shown with 95 % "
        f"confidence, and there are {images:,} to judge it on"
        for limit, needed in target.needed.items()
        if needed is None or needed > images
    ]


def _remedy(result: TargetResult, *, out_of_time: bool) -> str:
    if result.option == "--target-ms":
        return "increase --target-ms, or decrease --image-size"
    if result.verdict is Verdict.FAIL:
        more_time = f", {MORE_TIME}," if out_of_time else ""
        return f"calibrate on more images{more_time} or relax the target"
    return (
        "add images that do not calibrate, preferably in a folder val/ beside train/, and allow "
        "enough time with --search-seconds; or relax the target (resdeploy verify --data judges on "
        "all images of a folder)"
    )
