"""Pipeline of `resdeploy export`: from a checkpoint to a bundle."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from resdeploy.bundle.analysis import Analysis, Remedy
from resdeploy.bundle.batch_norm_shift import BatchNormShift
from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.calibration_record import CalibrationRecord, TargetResult
from resdeploy.bundle.golden import Golden
from resdeploy.bundle.manifest import (
    MANIFEST,
    Artifact,
    ExportWarning,
    GoldenOrigin,
    GoldenRecord,
    Parity,
)
from resdeploy.bundle.signature import check_key, sign_bundle
from resdeploy.export.bundle_files import write_graphs, write_other_files
from resdeploy.export.golden_images import choose_golden, make_golden, read_golden_images
from resdeploy.export.graph.count_operations import work_of
from resdeploy.export.inputs import Source, read_source
from resdeploy.export.mixed_precision.accuracy_target import AccuracyTarget, meet_accuracy_target
from resdeploy.export.mixed_precision.evaluator import SearchContext
from resdeploy.export.mixed_precision.latency_target import meet_latency_target
from resdeploy.export.mixed_precision.tradeoff import trade_off_points
from resdeploy.export.mixed_precision.verdict import (
    float_warnings,
    judge_accuracy,
    judge_latency,
    target_warnings,
    too_few_images,
)
from resdeploy.export.network_check import (
    check_network,
    drop_wrong_guess,
    label_warnings,
    shift_warnings,
    training_warnings,
)
from resdeploy.export.noise_analysis import analyse
from resdeploy.export.options import check_int8_options
from resdeploy.export.quantization.calibrate import (
    calibrate,
    calibrators_named,
    with_dla,
)  # fmt: skip
from resdeploy.export.quantization.compensation import with_rounded_weights
from resdeploy.export.quantization.held_out import (
    FEWEST_IMAGES,
    ImageUse,
    draw_held_out_images,
    require_images,
)
from resdeploy.export.quantization.judge import Judgement, duration_line, judge
from resdeploy.export.quantization.result import Calibration
from resdeploy.export.source.network import CheckpointNetwork, Network
from resdeploy.export.source_preprocessing import preprocessing_warnings, remedy_of
from resdeploy.export.triton.repository import TritonRepository, refuse_repository, write_repository
from resdeploy.filesystem import new_directory, refuse_existing
from resdeploy.images.class_mapping import default_labels
from resdeploy.images.preprocessing import (
    ImageSize,
    Preprocessing,
    UInt8Array,
    image_digest,
    size_text,
)
from resdeploy.images.preprocessing_choice import assumption
from resdeploy.images.preprocessing_settings import NOTHING_STATED, PreprocessingSettings
from resdeploy.progress import Progress, silent
from resdeploy.runtime.backends.tensorrt.build import BuildReport, build, choose_flavour
from resdeploy.runtime.backends.tensorrt.options import BuildOptions
from resdeploy.runtime.backends.tensorrt.tensorrt_or_rtx import ARTIFACTS as TENSORRT_ARTIFACTS
from resdeploy.runtime.backends.tensorrt.tensorrt_or_rtx import load_tensorrt
from resdeploy.statistics import Verdict, worst_verdict
from resdeploy.train.checkpoint.contents import Weights
from resdeploy.train.run.folder import LATEST

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """Options of an export; `inputs.read_source` describes the first four."""

    source: Path | Network = LATEST
    weights: Weights = Weights.AUTO
    """Weights to take if the source has a moving average of them, too."""
    image_size: ImageSize | None = None
    stated: PreprocessingSettings = NOTHING_STATED
    """Pre-processing that options state, besides the image size."""
    preprocessing: Path | None = None
    """File that states the pre-processing, or `auto` to find it out on the images in `data`."""
    data: Path | None = None
    labels: Path | None = None
    calibration_data: Path | None = None
    golden_data: Path | None = None
    """Folder of golden images; None for the validation images, or else calibration images."""
    output: Path | None = None
    """Folder of the bundle; by default, `NAME.bundle` in the working folder, see `Source.name`."""
    fp16: bool = False
    int8: bool = False
    dla: bool = False
    """True to write a graph for NVIDIA's deep-learning accelerator, too; needs `int8`."""
    calibration_images: int = 512
    calibrator: str = "auto"
    """Name of a calibrator or a family, or `auto`: see `calibrate.calibrate`."""
    int8_shortcuts: bool = False
    """True to quantise the shortcuts of TensorRT's INT8 graph, which are otherwise float16."""
    min_agreement: float | None = None
    """Limit of the accuracy target, in percent: see `AccuracyTarget`."""
    max_drop: float | None = None
    """Limit of the accuracy target, in percentage points."""
    target_ms: float | None = None
    """Latency target for one image in the CPU's INT8 graph, in ms: see `meet_latency_target`."""
    search_seconds: float = 600.0
    """Time limit of the search for a target, in seconds."""
    seed: int = 0
    """Seed that decides which images calibrate and which are golden."""
    engine: bool = False
    """True to build TensorRT engines of the graphs for this machine, too."""
    sign: str | None = None
    """Private key, or `sigstore`, to sign the bundle with: see `sign_bundle`."""
    triton: Path | None = None
    """Folder in which to write a Triton model repository, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """Result of `resdeploy export`."""

    bundle: Path
    artifacts: tuple[Artifact, ...]
    calibration: CalibrationRecord | None
    parity: dict[str, Parity]
    """Parity with PyTorch by the artifact's name."""
    preprocessing: Preprocessing
    preprocessing_origins: dict[str, str]
    """Place that states each setting of the pre-processing, see `Manifest`."""
    verdict: Verdict | None
    """Worst verdict of all targets; None without a target."""
    golden: GoldenRecord
    warnings: tuple[ExportWarning, ...]
    batch_norm_shift: BatchNormShift | None
    remedy: Remedy | None
    """Action against the noise of the worst INT8 graph; None without INT8."""
    batch_norms_lack_statistics: bool
    labels_are_assumed: bool
    """True if neither the source nor an option names the classes."""
    engines: tuple[BuildReport, ...]
    triton: TritonRepository | None
    data: Path | None
    """Data of the run, for `resdeploy verify --data`; None if it is not there."""
    seconds: float
    schema: str = "resdeploy.export/1"


def export(
    config: ExportConfig, *, force: bool = False, progress: Progress = silent
) -> ExportResult:
    """Write a bundle; if anything fails before the bundle is complete, leave none.

    Raises:
        BackendError: TensorRT engines were requested and cannot be built on this machine.
        CheckpointError: The source cannot be used.
        DataError, CalibrationError: The images cannot be used.
        ExportError: Options contradict each other, the labels do not fit, a target cannot be met,
            or a graph does not agree with PyTorch.
        OutputError: An output exists already, or cannot be written.
    """
    start = time.perf_counter()
    target = AccuracyTarget(min_agreement=config.min_agreement, max_drop=config.max_drop)
    check_int8_options(
        int8=config.int8, dla=config.dla, min_agreement=config.min_agreement,
        max_drop=config.max_drop, target_ms=config.target_ms,
    )  # fmt: skip
    if config.engine:
        load_tensorrt(choose_flavour())  # fail before the work rather than at its end
    check_key(config.sign)
    if config.output is not None:
        refuse_existing(config.output, force=force, marker=MANIFEST)
    with progress("reading the source", 0):
        source = read_source(
            config.source,
            weights=config.weights,
            image_size=config.image_size,
            stated=config.stated,
            preprocessing_file=config.preprocessing,
            data=config.data,
            labels=config.labels,
            calibration_data=config.calibration_data,
            seed=config.seed,
            progress=progress,
        )
    output = config.output or Path(f"{source.name}.bundle")
    refuse_existing(output, force=force, marker=MANIFEST)
    if config.triton is not None:
        refuse_repository(config.triton, force=force)
    if config.int8:
        require_images(source, FEWEST_IMAGES if _has_target(config) else 1)

    preprocessing = source.preprocessing
    name, size = source.network.name, size_text(preprocessing.image_size)
    logger.info("exporting %s: %s at %s pixels", source.described, name, size)
    if assumed := assumption(source.choice):
        logger.info(
            "%s; if that is wrong, stop this export, and %s", assumed, remedy_of(source.network)
        )
    untrained = training_warnings(source.run)
    for doubt in untrained:  # repeated at the end
        logger.info("%s; to stop this export: Ctrl-C", doubt.message)
    classifier = source.network.classifier(preprocessing)
    with progress("computing the golden logits", 0):
        if config.golden_data is None:
            golden_images, origin = choose_golden(source.pools, preprocessing, config.seed)
        else:
            golden_images = read_golden_images(config.golden_data, preprocessing, config.seed)
            origin = GoldenOrigin.DATA
        golden = make_golden(classifier, golden_images)
    with progress("comparing the batch norms with the images", 0):
        check = check_network(classifier, source, config.seed)
    check, source = drop_wrong_guess(check, source)
    shift = check.shift if check else None
    is_checkpoint = isinstance(source.network, CheckpointNetwork)
    lacks_statistics = is_checkpoint and check is not None and shift is None and not source.is_own
    warnings = preprocessing_warnings(source.network, source.choice)
    warnings += untrained + shift_warnings(check, source)
    warnings += label_warnings(check, source, labels_are_used=config.int8)
    with progress("converting to ONNX", 0):
        model = classifier.to_onnx()
    calibration: Calibration | None = None
    judgement: Judgement | None = None
    if config.int8:
        decoded = check.images if check else {}
        calibration, judgement = _calibrate(
            model, source, golden, config, target, decoded, progress
        )
        model = calibration.model
        warnings += target_warnings(calibration.targets, calibration.unfinished)
    with new_directory(output, force=force, marker=MANIFEST) as folder:
        with progress("writing the graphs", 0):
            artifacts, golden = write_graphs(
                folder, model, golden, calibration, judgement, half=config.fp16
            )
        searched = calibration is not None and bool(calibration.targets)
        unfinished = calibration.unfinished if calibration else ()
        warnings += float_warnings(artifacts, searched=searched, unfinished=unfinished)
        analysis: Analysis | None = None
        if calibration is not None:
            analysis = analyse(
                model, calibration.recipes, calibration.record(), artifacts, golden, progress,
                calibration.statistics,
            )  # fmt: skip
        with progress("writing the report", 0):
            manifest = write_other_files(
                folder, output.name, source, artifacts, golden, origin, classifier.reference,
                calibration, analysis, work_of(model), warnings, shift, lacks_statistics,
            )  # fmt: skip
    bundle = Bundle(output, manifest)
    if config.sign is not None:
        sign_bundle(bundle, config.sign)
    engines = _build_engines(bundle, progress) if config.engine else ()
    triton: TritonRepository | None = None
    if config.triton is not None:
        triton = write_repository(bundle, config.triton, force=force)
    return ExportResult(
        bundle=output,
        artifacts=manifest.artifacts,
        calibration=calibration.record() if calibration else None,
        parity={artifact.name: artifact.parity for artifact in artifacts},
        preprocessing=manifest.preprocessing,
        preprocessing_origins=manifest.preprocessing_origins,
        verdict=worst_verdict(result.verdict for result in calibration.targets)
        if calibration is not None and calibration.targets
        else None,
        golden=manifest.golden,
        warnings=manifest.warnings,
        batch_norm_shift=shift,
        remedy=analysis.remedy if analysis else None,
        batch_norms_lack_statistics=lacks_statistics,
        labels_are_assumed=source.labels == default_labels(len(source.labels)),
        engines=engines,
        triton=triton,
        data=source.validation_data,
        seconds=time.perf_counter() - start,
    )


def _has_target(config: ExportConfig) -> bool:
    limits = (config.min_agreement, config.max_drop, config.target_ms)
    return any(limit is not None for limit in limits)


def _calibrate(
    model: ir.Model,
    source: Source,
    golden: Golden,
    config: ExportConfig,
    target: AccuracyTarget,
    decoded: Mapping[Path, UInt8Array],
    progress: Progress,
) -> tuple[Calibration, Judgement | None]:
    """Choose ranges, choose layers in float for a target, and judge the graphs on other images."""
    golden_digests = {image_digest(image) for image in golden.images}
    use = _image_use(source, golden, config, target)
    plan = use.plan()
    for sentence in too_few_images(target, plan.judged + plan.cross_validated):
        logger.warning("%s, so the target can be missed or undecided, but not held", sentence)
    if target.max_drop is not None and source.classes_of(source.pools.calibration[:1]) is None:
        logger.warning(
            "the classes of the images are not known, so each changed prediction counts as lost: "
            "--max-drop %g can be held, but not missed; to judge accuracy, sort the images into "
            "folders named like the labels", target.max_drop,
        )  # fmt: skip
    calibration = calibrate(
        model,
        source,
        calibrator=config.calibrator,
        images=config.calibration_images,
        seed=config.seed,
        golden_digests=golden_digests,
        decoded=decoded,
        progress=progress,
        int8_shortcuts=config.int8_shortcuts,
        cross_validated=plan.cross_validated,
        reserve=_has_target(config),
    )
    for sentence in use.sentences(
        calibrating=len(calibration.digests), scoring=len(calibration.scoring.images),
        folds=len(calibration.folds),
    ):  # fmt: skip
        logger.info("%s", sentence)
    start = time.perf_counter()
    calibration = with_rounded_weights(calibration, progress)
    rounding = time.perf_counter() - start
    if told := duration_line(rounding, len(calibration.folds), config.search_seconds):
        logger.info("%s", told)
    used = {*golden_digests, *calibration.digests, *calibration.selection_digests}
    with progress("reading held-out images", 0):
        held_out = draw_held_out_images(
            source, config.seed, plan.judged + plan.searched, used=used,
            used_paths=calibration.examined,
        )  # fmt: skip
    judged, searched = held_out.part(0, plan.judged), held_out.part(plan.judged)
    if _has_target(config) and len(calibration.scoring.images):
        context = SearchContext(
            model=calibration.model,
            held_out=calibration.scoring.plus(searched),
            calibrating=calibration.rounding,
            seconds=config.search_seconds,
            progress=progress,
        )
        if config.target_ms is None:
            calibration = meet_accuracy_target(calibration, target, context)
        else:
            calibration = meet_latency_target(calibration, config.target_ms, context)
    points = trade_off_points(calibration, golden.images[:1], progress)
    calibration = replace(calibration, points=points)
    if config.dla:
        calibration = with_dla(calibration, config.calibrator, progress)
    judgement = judge(calibration, judged, progress, config.search_seconds)
    targets: tuple[TargetResult, ...] = ()
    if judgement is not None and target.is_set:
        targets = judge_accuracy(judgement, target)
    elif config.target_ms is not None:
        targets = (judge_latency(calibration, config.target_ms, golden.images[:1]),)
    return replace(calibration, targets=targets), judgement


def _image_use(
    source: Source, golden: Golden, config: ExportConfig, target: AccuracyTarget
) -> ImageUse:
    pools, needed = source.pools, list(target.needed.values())
    return ImageUse(
        size=source.preprocessing.image_size,
        available=len(pools.calibration),
        validation=None if pools.golden == pools.calibration else len(pools.golden),
        golden=len(golden.images),
        wanted=config.calibration_images,
        compares=len(calibrators_named(config.calibrator)) > 1,
        target=_has_target(config),
        needed=max((number for number in needed if number is not None), default=None),
    )


def _build_engines(bundle: Bundle, progress: Progress) -> tuple[BuildReport, ...]:
    return tuple(
        build(bundle, artifact, choose_flavour(), BuildOptions(), progress=progress)
        for artifact in bundle.manifest.artifacts
        if artifact.name in TENSORRT_ARTIFACTS
    )
