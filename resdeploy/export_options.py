"""What can be set on `resdeploy export`; `ExportConfig` says more of each."""

from __future__ import annotations

import click

from resdeploy.console import PATH, parameters

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
