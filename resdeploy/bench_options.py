"""What can be set on `resdeploy bench`; `BenchmarkConfig` says more of each."""

from __future__ import annotations

from pathlib import Path

import click

from resdeploy.console import PATH, parameters


def _share(context: click.Context, parameter: click.Parameter, text: str) -> float:
    """`5%` or `5` as 0.05."""
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise click.BadParameter(f"{text!r} is not a percentage, such as 5%")
    return share


def _with_pictures(
    context: click.Context, parameter: click.Parameter, folder: Path | None
) -> Path | None:
    if folder is not None and context.params["mode"] != "end-to-end":
        raise click.UsageError("--images goes with --mode end-to-end")
    return folder


bench_options = parameters(
    click.option(
        "--mode",
        type=click.Choice(["stream", "offline", "end-to-end"]),
        default="stream",
        show_default=True,
        is_eager=True,
        help="One call after the other, large batches, or from the bytes of JPEG files to labels.",
    ),
    click.option(
        "--baseline",
        "checkpoint",
        type=PATH,
        help="PyTorch weights.  [default: those of the bundle]",
    ),
    click.option(
        "--batch",
        type=click.IntRange(1, 4096),
        help="Images in one run.  [default: 1; offline 8]",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1, 1024),
        help="Threads of one inference.  [default: all cores]",
    ),
    click.option(
        "--seconds",
        type=click.FloatRange(0.1),
        default=15.0,
        show_default=True,
        help="At most, for each contender.",
    ),
    click.option(
        "--within",
        metavar="PERCENT",
        callback=_share,
        default="5%",
        show_default=True,
        help="End earlier when the intervals of all speed-ups are narrower.",
    ),
    click.option(
        "--images",
        "pictures",
        type=PATH,
        callback=_with_pictures,
        help="Folder of pictures, end to end.  [default: the golden images as JPEG]",
    ),
    click.option("--also", type=click.Choice(["openvino"]), multiple=True, help="Another runtime."),
    click.option(
        "--without",
        metavar="NAME",
        multiple=True,
        help="Leave out, such as pytorch-compile, onnxruntime-cpu, ceilings.",
    ),
    click.option("-o", "--output", type=PATH, help="Also write the JSON document there."),
)
