"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resdeploy.cli.console import PATH, CommandResult, command, refuse_given
from resdeploy.cli.options import BACKEND, PRECISION, THREADS
from resdeploy.tables import WORST, plural

if TYPE_CHECKING:
    from resdeploy.runtime.camera import CameraReport
    from resdeploy.runtime.model import FilePredictions


def predictions_text(files: Sequence[FilePredictions]) -> str:
    """For each image its labels, with bars."""
    blocks = []
    for file in files:
        width = max(len(line.label) for line in file.predictions)
        bars = [
            f"  {line.label.ljust(width)}  {100 * line.probability:5.1f} %  "
            f"{'#' * round(30 * line.probability)}".rstrip()
            for line in file.predictions
        ]
        blocks.append("\n".join([str(file.image), *bars]))
    return "\n".join(blocks)


def camera_text(report: CameraReport) -> str:
    """What was seen, and the account of the frames."""
    width = max(len(label) for label in report.labels)
    lines = [
        f"  {label.ljust(width)}  {plural(count, 'frame')}"
        for label, count in list(report.labels.items())[:WORST]
    ]
    lost = "" if report.lost is None else f", {report.lost} lost before they came"
    return "\n".join(
        [
            report.source,
            *lines,
            f"{report.captured} frames in {report.seconds:.1f} s: {report.classified} classified "
            f"({report.frames_per_second:.1f} a second, {report.p50_ms:.1f} ms each), "
            f"{report.dropped} dropped{lost}",
        ]
    )


@click.command()
@click.argument("bundle", type=PATH)
@click.argument("images", type=PATH, nargs=-1)
@click.option("--camera", metavar="SOURCE", help="Instead: a number, /dev/video0, a URL, a file.")
@click.option("--frames", type=click.IntRange(1), help="Of the camera.  [default: until CTRL-C]")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="The same.")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True)
@BACKEND
@PRECISION
@THREADS
@command
def predict(
    bundle: Path, images: tuple[Path, ...], camera: str | None, frames: int | None,
    seconds: float | None, top: int, **settings: Any,
) -> CommandResult:  # fmt: skip
    """Name what IMAGES show, or a camera."""
    from resdeploy.progress import progress_bar
    from resdeploy.runtime.model import load, predict_files

    if bool(images) == bool(camera):
        raise click.UsageError("name IMAGES or a --camera")
    if camera is None:
        refuse_given(("frames", "seconds"), "only a --camera has an end to choose")
    else:
        from resdeploy.runtime.camera import watch_camera

        with load(bundle, progress=progress_bar, **settings) as model:
            report = watch_camera(model, camera, frames=frames, seconds=seconds, top=top)
        return CommandResult(report, camera_text(report))
    with load(bundle, progress=progress_bar, **settings) as model:
        result = predict_files(model, images, top)
    return CommandResult(result, predictions_text(result))
