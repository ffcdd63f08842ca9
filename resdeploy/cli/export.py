"""The command `resdeploy export`: write a checkpoint as a bundle of ONNX graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from click import Choice, argument, option

from resdeploy.bundle.manifest import Precision, graph_name, with_use
from resdeploy.bundle.quality import (
    ENOUGH_AGREEMENT,
    ENOUGH_SQNR_DB,
    TRAIN_AGAIN,
    action_text,
    judged_images,
    shows_no_learning,
    warning_lines,
)
from resdeploy.cli.build import build_text
from resdeploy.cli.options.common import (
    FORCE,
    LONGEST_SECONDS,
    LONGEST_WAIT_MS,
    WEIGHTS,
    FiniteRange,
    Integers,
)
from resdeploy.cli.options.console import (
    PATH,
    CommandResult,
    ExitCode,
    command,
    exit_code,
    reject_options,
    result_text,
)
from resdeploy.cli.options.preprocessing import preprocessing_options, take_settings
from resdeploy.images.preprocessing_choice import describe_choice
from resdeploy.tables import percentage, plural, table, two_digits

if TYPE_CHECKING:
    from resdeploy.bundle.analysis import Remedy
    from resdeploy.bundle.calibration_record import CalibrationRecord
    from resdeploy.bundle.manifest import Artifact, ExportWarning, GoldenRecord, Quality
    from resdeploy.export.pipeline import ExportResult
    from resdeploy.export.replace_golden import GoldenReplacement
    from resdeploy.export.triton.repository import TritonRepository


@command
@argument("source", type=PATH, default="runs/latest")
@option("-o", "--output", type=PATH, help="Bundle to write.  [default: NAME.bundle]")
@option("--fp16", is_flag=True, help="Also write fp16.onnx.")
@option("--int8", is_flag=True, help="Also write int8.onnx (for TensorRT) and int8-cpu.onnx.")
@option(
    "--dla",
    is_flag=True,
    help="With --int8: also write int8-dla.onnx, for the DLA (deep-learning accelerator) of a "
    "Jetson.",
)
@option(
    "--calibration-data",
    type=PATH,
    help="Folder of images to calibrate on.  [default: the training images of the run]",
)
@option(
    "--golden-data",
    type=PATH,
    help="Folder of up to 32 golden images, which verify the graphs anywhere; if SOURCE is a "
    "bundle, only replace its golden images (--force: in place).  [default: validation images, or "
    "else calibration images, or else synthetic ones]",
)
@option(
    "--calibration-images",
    type=Integers(1, 1_000_000),
    default=512,
    help="Number of calibration images.",
)
@option(
    "--calibrator",
    type=Choice(["auto", "max", "image", "percentile", "entropy", "mse"]),
    default="auto",
    help="Rule that chooses the INT8 ranges; auto: compare 9 rules on further images, and keep the "
    "best one; image: compare 3.",
)
@option(
    "--int8-shortcuts",
    is_flag=True,
    help="Also quantise the shortcuts of int8.onnx, which is faster and less accurate.",
)
@option(
    "--min-agreement",
    type=FiniteRange(0, 100),
    help="Keep the most sensitive layers in float until this percentage of images has the same "
    "predicted class as FP32.",
)
@option(
    "--max-drop",
    type=FiniteRange(0, 100),
    help="Keep the most sensitive layers in float until top-1 accuracy drops by no more than "
    "this, in percentage points.",
)
@option(
    "--target-ms",
    type=FiniteRange(0, LONGEST_WAIT_MS, above=True),
    help="Keep as many sensitive layers of int8-cpu.onnx in float as this latency for one image "
    "on this CPU allows, in milliseconds.",
)
@option(
    "--search-seconds",
    type=FiniteRange(1, LONGEST_SECONDS),
    default=600.0,
    help="Longest duration of the search for layers to keep in float, and of the judgement of the "
    "INT8 graphs, in seconds; each of them completes its first step, such as one rounding of all "
    "weights.",
)
@option("--engine", is_flag=True, help="Also build TensorRT engines for this machine.")
@option(
    "--triton",
    type=PATH,
    help="Also write a Triton model repository to this folder; if SOURCE is a bundle, write only "
    "the repository.",
)
@option(
    "--sign",
    metavar="KEY|sigstore",
    help="Also sign the bundle, see `resdeploy sign`.",
)
@option(
    "--labels",
    type=PATH,
    help="Text file with one class name per line.  [default: the names in SOURCE]",
)
@WEIGHTS
@option(
    "--seed",
    type=Integers(0, 2**63 - 1),
    default=0,
    help="Seed of the random choice of calibration and golden images.",
)
@preprocessing_options(default_size="as stated, or 224")
@option(
    "--data",
    type=PATH,
    help="With --preprocessing auto: folder of labelled images from which the pre-processing is "
    "found, see `resdeploy preprocess`.",
)
@FORCE
def export(
    source: Path, output: Path | None, triton: Path | None, golden_data: Path | None, seed: int,
    sign: str | None, force: bool, **settings: Any,
) -> CommandResult:  # fmt: skip
    """Export SOURCE to a bundle of ONNX graphs.

    SOURCE is a run folder, or weights of a residual network as PyTorch, timm, Hugging Face (file or
    folder), fastai or Lightning save them, or a classifier of any architecture in an .onnx or .pt2
    file; the default is runs/latest. The bundle also holds golden images (inputs with the logits of
    PyTorch, or of the .onnx file) to verify the graphs anywhere. Options of the pre-processing
    without a default take what SOURCE states, or else the usual value. With --int8 and large
    images, an export takes minutes: --calibrator image or max, fewer --calibration-images and a
    smaller --search-seconds shorten it.

    Exit code with a target: 0 if it was reached, 1 if it was missed, 3 if too few images decide;
    the bundle is written in each case.
    """
    from resdeploy.bundle.bundle import open_bundle
    from resdeploy.bundle.manifest import MANIFEST
    from resdeploy.progress import progress_bar

    if (triton or golden_data) and (source / MANIFEST).is_file():
        bundle = open_bundle(source)
        reason = f"{source} is a bundle already"
        if golden_data is not None:
            from resdeploy.export.replace_golden import replace_golden

            reject_options({*settings, "triton"}, reason)
            replaced = replace_golden(
                bundle,
                golden_data,
                output or source.resolve(),
                seed=seed,
                sign=sign,
                force=force,
            )
            return CommandResult(replaced, golden_text(replaced))
        from resdeploy.export.triton.repository import write_repository

        assert triton is not None
        reject_options({*settings, "output", "seed", "sign"}, reason)
        written = write_repository(bundle, triton, force=force)
        return CommandResult(written, repository_text(written), warnings=bundle.manifest.warnings)
    refuse_arguments(source, output, golden_data, settings, force=force)
    with progress_bar("loading PyTorch", 0):
        from resdeploy.export.pipeline import ExportConfig
        from resdeploy.export.pipeline import export as run_export
        from resdeploy.train.checkpoint.contents import Weights

    settings |= {"source": source, "output": output, "triton": triton, "seed": seed, "sign": sign}
    settings["stated"] = take_settings(settings)
    settings |= {"golden_data": golden_data, "weights": Weights(settings["weights"])}
    result = run_export(ExportConfig(**settings), force=force, progress=progress_bar)
    exit = exit_code(result.verdict) if result.verdict else ExitCode.OK
    return CommandResult(result, export_text(result), exit)


def refuse_arguments(
    source: Path, output: Path | None, golden_data: Path | None, settings: Mapping[str, Any], *,
    force: bool,
) -> None:  # fmt: skip
    """Check what needs no PyTorch, which takes seconds to load; the export repeats it."""
    from resdeploy.bundle.manifest import MANIFEST
    from resdeploy.errors import ExportError
    from resdeploy.export.options import (
        check_calibration_source,
        check_int8_options,
        check_source,
    )
    from resdeploy.filesystem import refuse_existing
    from resdeploy.images.class_folders import read_labels
    from resdeploy.images.folder import require_folder
    from resdeploy.images.preprocessing_files import read_preprocessing_file

    names = ("int8", "dla", "min_agreement", "max_drop", "target_ms")
    check_int8_options(**{name: settings[name] for name in names})
    if output is not None:
        refuse_existing(output, force=force, marker=MANIFEST)
    if str(source) != "runs/latest":
        check_source(source.resolve() if source.is_symlink() else source)
    if settings["labels"] is not None:
        read_labels(settings["labels"], ExportError)
    if settings["preprocessing"] not in (None, Path("auto")):
        read_preprocessing_file(settings["preprocessing"])
    if settings["int8"]:
        check_calibration_source(source, settings["calibration_data"])
    for folder in (settings["calibration_data"], golden_data):
        if folder is not None:
            require_folder(folder)


@result_text
def export_text(result: ExportResult) -> str:
    """Return a table with a row per graph, warnings, the calibration and what else was written."""
    lines = [
        parity_table(result.artifacts),
        f"pre-processing: {describe_choice(result.preprocessing, result.preprocessing_origins)}",
        *warning_lines(result.warnings),
        *shift_lines(result),
        *calibration_lines(result.calibration),
        *remedy_line(result.remedy, result.warnings),
        *map(build_text, result.engines),
        f"wrote {result.bundle} in {result.seconds:.0f} s",
        comparison_line(result.golden),
    ]
    if result.labels_are_assumed:
        lines.append(
            "the source has no class names, so predictions show 'class 0' and so on; name the "
            "classes with --labels FILE, one per line, in the order of the outputs"
        )
    lines += [repository_text(result.triton)] if result.triton else []
    shown = quote(str(result.bundle))
    data = f" --data {quote(str(result.data))}" if result.data else ""
    step = f"resdeploy verify {shown}{data}; resdeploy serve {shown}"
    if shows_no_learning(result.warnings):
        step = TRAIN_AGAIN
    return "\n".join([*lines, f"next: {step}"])


def remedy_line(remedy: Remedy | None, warnings: Sequence[ExportWarning]) -> list[str]:
    """Return a line about the action that would improve an INT8 graph, unless a warning has it."""
    if remedy is None or not (action := action_text(remedy)):
        return []
    name = graph_name(Precision.INT8, remedy.encoding)
    if any(name in warning.artifacts for warning in warnings):
        return []
    images = (
        judged_images(remedy.images, remedy.origin)
        if remedy.origin
        else plural(remedy.images, "golden image")
    )
    return [
        f"optional: {action}; {with_use(name, remedy.encoding)} predicts FP32's class for "
        f"{percentage(remedy.agreement)} of {images} (aim: {ENOUGH_AGREEMENT:g} %), and its SQNR "
        f"on the golden images is {remedy.sqnr_db:.1f} dB (aim: {ENOUGH_SQNR_DB:g} dB)"
    ]


@result_text
def golden_text(result: GoldenReplacement) -> str:
    """Return a table with a row per graph, warnings, and the new golden images."""
    lines = [parity_table(result.artifacts), *warning_lines(result.warnings)]
    note = (
        "the reference of every graph is now fp32.onnx, because the bundle does not hold the "
        "network that was exported; export it again with --golden-data to compare with that"
    )
    return "\n".join([*lines, f"wrote {result.bundle}", comparison_line(result.golden), note])


def comparison_line(golden: GoldenRecord) -> str:
    """Return what the graphs were compared with, and how to take real images."""
    remedy = "; take real ones with --golden-data" if golden.kind == "synthetic" else ""
    return (
        f"compared with {golden.reference_name} on {golden.described}{remedy}; SQNR: the median "
        "of the images; logit error: the largest difference of a logit in any image"
    )


def parity_table(artifacts: Sequence[Artifact]) -> str:
    """Return a row per graph: its size, and its comparison on golden and on other images."""
    judged = next((a.quality for a in artifacts if a.quality is not None), None)
    rows = [
        [
            artifact.file,
            f"{artifact.bytes / 1e6:.1f} MB",
            f"{artifact.int8_convs}/{artifact.convs}",
            f"{artifact.parity.agreement:.1f} %",
            f"{artifact.parity.sqnr_db:.1f} dB",
            two_digits(artifact.parity.max_error),
            *([quality_text(artifact.quality)] if judged else []),
        ]
        for artifact in artifacts
    ]
    head = ["graph", "size", "INT8 convs", "agreement", "SQNR", "logit error"]
    if judged is not None:
        head.append(f"judged on {judged.images:,} images")
    return table(head, rows)


def quality_text(quality: Quality | None) -> str:
    return "" if quality is None else f"{quality.agreement:.2f} %, {quality.sqnr_db:.1f} dB"


@result_text
def repository_text(result: TritonRepository) -> str:
    rows = [
        [m.name, m.backend, str(m.plan or m.graph), "to build" if m.plan else ""]
        for m in result.models
    ]
    lines = [table(["Triton model", "backend", "file", ""], rows)]
    if any(model.plan for model in result.models):
        lines.append(
            "build the engines on the target, in Triton's image: "
            f"sh {result.repository}/build-plans.sh"
        )
    lines.append(f"wrote {result.repository} from {result.bundle}")
    return "\n".join(lines)


def shift_lines(result: ExportResult) -> list[str]:
    """Return a line about the batch norms, unless a warning says it; none without images."""
    from resdeploy.bundle.batch_norm_shift import NO_STATISTICS, shift_sentence

    if result.batch_norms_lack_statistics:
        return [NO_STATISTICS]
    shift = result.batch_norm_shift
    return [shift_sentence(shift)] if shift and shift.fits else []


def calibration_lines(record: CalibrationRecord | None) -> list[str]:
    """Return lines about the calibrators, the layers in float and the targets, if there are any."""
    if record is None:
        return []
    from resdeploy.bundle.calibration_record import (
        explain_calibrator,
        float_layers_sentence,
        target_sentence,
    )
    from resdeploy.bundle.manifest import Encoding

    chosen = ", ".join(
        f"{name} for {graph_name(Precision.INT8, Encoding(kind))}"
        for kind, name in record.method.items()
    )
    count = len({score.calibrator for score in record.scores})
    how = f" (the highest score of {count} rules on {record.scoring_images} further images)"
    lines = [
        f"calibrated on {record.images:,} images; rule for the INT8 ranges: {chosen}"
        f"{how if count else ''}"
    ]
    lines.append("; ".join(map(explain_calibrator, dict.fromkeys(record.method.values()))))
    lines += [float_layers_sentence(layers) for layers in record.float_layers]
    # A target that is not held is among the warnings.
    held = [result for result in record.targets if result.verdict.value == "pass"]
    return lines + [target_sentence(result) for result in held]
