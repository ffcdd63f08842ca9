"""TODO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resdeploy.cli.build import build_text
from resdeploy.cli.console import PATH, CommandResult, command, parameters, refuse_given
from resdeploy.cli.options import FORCE
from resdeploy.tables import table

if TYPE_CHECKING:
    from resdeploy.bundle.calibration_record import CalibrationRecord
    from resdeploy.export.pipeline import ExportResult
    from resdeploy.export.triton.repository import TritonRepository


def export_text(result: ExportResult) -> str:
    """A row per graph."""
    rows = [
        [
            artifact.file,
            f"{artifact.bytes / 1e6:.1f} MB",
            f"{artifact.int8_convs}/{artifact.convs}",
            f"{artifact.parity.agreement:.1f} %",
            f"{artifact.parity.sqnr_db:.1f} dB",
            f"{artifact.parity.max_error:.1g}",
        ]
        for artifact in result.artifacts
    ]
    head = ["graph", "size", "int8 convs", "same class", "SQNR", "max error"]
    images = result.artifacts[0].parity.images
    return (
        f"{table(head, rows)}\n{calibration_text(result.calibration)}"
        + "".join(f"{build_text(report)}\n" for report in result.engines)
        + f"{result.bundle} in {result.seconds:.0f} s, compared with PyTorch on {images} images"
        + (f"\n{repository_text(result.triton)}" if result.triton else "")
    )


def repository_text(result: TritonRepository) -> str:
    """A row per model, and what is left to do."""
    rows = [
        [
            model.name,
            model.backend,
            str(model.plan or model.graph),
            "to build" if model.plan else "",
        ]
        for model in result.models
    ]
    lines = [table(["model of Triton", "backend", "file", ""], rows)]
    if any(model.plan for model in result.models):
        lines.append(f"on the target, in Triton's image: sh {result.repository}/build-plans.sh")
    lines.append(f"{result.repository} from {result.bundle}")
    return "\n".join(lines)


def calibration_text(record: CalibrationRecord | None) -> str:
    """One line: on what, by which calibrator, and how it was chosen."""
    if record is None:
        return ""
    from resdeploy.bundle.calibration_record import float_layers_sentence

    chosen = ", ".join(f"{name} for {kind}" for kind, name in record.method.items())
    tried = len({score.calibrator for score in record.scores})
    how = f", the best of {tried} on {record.scoring_images} others" if tried else ""
    lines = [f"calibrated on {record.images} images: {chosen}{how}"]
    lines += [float_layers_sentence(layers) for layers in record.float_layers]
    return "\n".join(lines) + "\n"


export_options = parameters(
    click.argument("source", type=PATH, default="runs/latest"),
    click.option("-o", "--output", type=PATH, help="Bundle.  [default: NAME.bundle]"),
    click.option("--fp16", is_flag=True, help="Also write fp16.onnx."),
    click.option("--int8", is_flag=True, help="Also write int8.onnx (TensorRT) and int8-cpu.onnx."),
    click.option(
        "--dla", is_flag=True, help="Also write int8-dla.onnx, for a Jetson's accelerator."
    ),
    click.option(
        "--calibration-data", type=PATH, help="Folder of images.  [default: the run's own]"
    ),
    click.option("--calibration-images", type=click.IntRange(1), default=512, show_default=True),
    click.option(
        "--calibrator",
        type=click.Choice(["auto", "max", "image", "percentile", "entropy", "mse"]),
        default="auto",
        show_default=True,
        help="How ranges are chosen; auto tries all on images held out.",
    ),
    click.option(
        "--int8-shortcuts",
        is_flag=True,
        help="TensorRT: blocks' shortcuts in INT8, too; a little faster, less accurate.",
    ),
    click.option(
        "--min-agreement",
        type=click.FloatRange(0, 100),
        help="Percent of images that keep FP32's class: layers go back to float until they do.",
    ),
    click.option(
        "--max-drop",
        type=click.FloatRange(0, 100),
        help="The same for points of accuracy lost.",
    ),
    click.option(
        "--target-ms",
        type=click.FloatRange(0, min_open=True),
        help="Instead: layers go back while one image takes at most this, here on the CPU.",
    ),
    click.option(
        "--search-seconds",
        type=click.FloatRange(1),
        default=600.0,
        show_default=True,
        help="Longest search for those layers.",
    ),
    click.option("--engine", is_flag=True, help="Also build TensorRT engines, for this machine."),
    click.option(
        "--triton", type=PATH, help="Also a repository for Triton; of a bundle only that."
    ),
    click.option(
        "--image-size", type=click.IntRange(8, 1024), help="[default: the run's own, or 224]"
    ),
    click.option("--labels", type=PATH, help="Text file, one class name a line."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
)


@click.command()
@export_options
@FORCE
@command
def export(source: Path, triton: Path | None, force: bool, **settings: Any) -> CommandResult:
    """Write SOURCE (a run, a .safetensors or a .pth file) as a bundle of ONNX graphs with proof."""
    from resdeploy.bundle.bundle import open_bundle
    from resdeploy.bundle.manifest import MANIFEST
    from resdeploy.progress import progress_bar

    if triton is not None and (source / MANIFEST).is_file():
        from resdeploy.export.triton.repository import write_repository

        refuse_given(settings, f"{source} is a bundle already")
        written = write_repository(open_bundle(source), triton, force=force)
        return CommandResult(written, repository_text(written))
    from resdeploy.export.pipeline import ExportConfig
    from resdeploy.export.pipeline import export as run_export

    settings |= {"source": source, "triton": triton}
    result = run_export(ExportConfig(**settings), force=force, progress=progress_bar)
    return CommandResult(result, export_text(result))
