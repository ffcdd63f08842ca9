"""The command `resdeploy export`: write a checkpoint as a bundle of ONNX graphs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from click import Choice, IntRange, argument, option

from resdeploy.cli.build import build_text
from resdeploy.cli.console import PATH, CommandResult, ExitCode, command, exit_code, reject_options
from resdeploy.cli.options import FORCE, LONGEST_SECONDS, LONGEST_WAIT_MS, FiniteRange
from resdeploy.tables import table

if TYPE_CHECKING:
    from resdeploy.bundle.batch_norm_shift import BatchNormShift
    from resdeploy.bundle.calibration_record import CalibrationRecord
    from resdeploy.bundle.manifest import Quality
    from resdeploy.export.pipeline import ExportResult
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
    "--calibration-images",
    type=IntRange(1, 1_000_000),
    default=512,
    help="Number of calibration images.",
)
@option(
    "--calibrator",
    type=Choice(["auto", "max", "image", "percentile", "entropy", "mse"]),
    default="auto",
    help="Method that chooses the quantisation ranges; auto tries all and keeps the best on "
    "held-out images.",
)
@option(
    "--int8-shortcuts",
    is_flag=True,
    help="Also quantise int8.onnx's shortcuts: faster, less accurate.",
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
    help="Longest search for the layers to keep in float, and longest judgement of the result, in "
    "seconds.",
)
@option("--engine", is_flag=True, help="Also build TensorRT engines for this machine.")
@option(
    "--triton",
    type=PATH,
    help="Also write a Triton model repository to this folder; if SOURCE is a bundle, write only "
    "the repository.",
)
@option(
    "--image-size",
    type=IntRange(8, 1024),
    help="Height and width of the input, in pixels.  [default: that of the run, or 224]",
)
@option(
    "--labels",
    type=PATH,
    help="Text file with one class name per line.  [default: the names in SOURCE]",
)
@option(
    "--seed",
    type=IntRange(0, 2**63 - 1),
    default=0,
    help="Seed of the choice of calibration and golden images.",
)
@FORCE
def export(source: Path, triton: Path | None, force: bool, **settings: Any) -> CommandResult:
    """Export SOURCE to a bundle of ONNX graphs.

    SOURCE is a run folder, a .safetensors file or a .pth file; the default is runs/latest. The
    bundle also holds golden images (inputs with PyTorch's logits) to verify the graphs anywhere.

    Exit code with a target: 0 held, 1 missed, 3 too few images to decide; the bundle is written in
    each case.
    """
    from resdeploy.bundle.bundle import open_bundle
    from resdeploy.bundle.manifest import MANIFEST
    from resdeploy.progress import progress_bar

    if triton is not None and (source / MANIFEST).is_file():
        from resdeploy.export.triton.repository import write_repository

        reject_options(settings, f"{source} is a bundle already")
        written = write_repository(open_bundle(source), triton, force=force)
        return CommandResult(written, repository_text(written))
    from resdeploy.export.pipeline import ExportConfig
    from resdeploy.export.pipeline import export as run_export

    settings |= {"source": source, "triton": triton}
    result = run_export(ExportConfig(**settings), force=force, progress=progress_bar)
    exit = exit_code(result.verdict) if result.verdict else ExitCode.OK
    return CommandResult(result, export_text(result), exit)


def export_text(result: ExportResult) -> str:
    """Return a table with a row per graph, then the calibration and what else was written."""
    judged = next((a.quality for a in result.artifacts if a.quality is not None), None)
    rows = [
        [
            artifact.file,
            f"{artifact.bytes / 1e6:.1f} MB",
            f"{artifact.int8_convs}/{artifact.convs}",
            f"{artifact.parity.agreement:.1f} %",
            f"{artifact.parity.sqnr_db:.1f} dB",
            f"{artifact.parity.max_error:.1g}",
            *([quality_text(artifact.quality)] if judged else []),
        ]
        for artifact in result.artifacts
    ]
    head = ["graph", "size", "INT8 convs", "agreement", "SQNR", "max error"]
    note = "golden images"
    if judged is not None:
        kind = "held-out" if judged.origin.value == "held-out" else "cross-validated"
        head.append(f"on {judged.images:,} {kind} images")
        note += ", and with FP32 on other images that did not calibrate"
    images = result.artifacts[0].parity.images
    return (
        f"{table(head, rows)}\n{shift_text(result.batch_norm_shift)}"
        + calibration_text(result.calibration)
        + "".join(f"{build_text(report)}\n" for report in result.engines)
        + f"wrote {result.bundle} in {result.seconds:.0f} s; compared with PyTorch on {images} "
        + note
        + (f"\n{repository_text(result.triton)}" if result.triton else "")
    )


def quality_text(quality: Quality | None) -> str:
    return "" if quality is None else f"{quality.agreement:.2f} %, {quality.sqnr_db:.1f} dB"


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


def shift_text(shift: BatchNormShift | None) -> str:
    """Return a line about the batch norms; empty without images."""
    from resdeploy.bundle.batch_norm_shift import shift_sentence

    return f"{shift_sentence(shift)}\n" if shift else ""


def calibration_text(record: CalibrationRecord | None) -> str:
    """Return lines about the calibrators and the layers in float; empty without calibration."""
    if record is None:
        return ""
    from resdeploy.bundle.calibration_record import float_layers_sentence, target_sentence

    chosen = ", ".join(f"{name} for {kind}" for kind, name in record.method.items())
    count = len({score.calibrator for score in record.scores})
    how = f", the best of {count} on {record.scoring_images} held-out images" if count else ""
    lines = [f"calibrated on {record.images} images: {chosen}{how}"]
    lines += [float_layers_sentence(layers) for layers in record.float_layers]
    lines += [target_sentence(result) for result in record.targets]
    return "\n".join(lines) + "\n"
