"""The command `resdeploy predict`: classify pictures, or the frames of a camera."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from click import UsageError, argument, option

from resdeploy.cli.options.common import (
    BACKEND,
    EXACT,
    LONGEST_SECONDS,
    PRECISION,
    THREADS,
    FiniteRange,
    Integers,
)
from resdeploy.cli.options.console import (
    PATH,
    CommandResult,
    ExitCode,
    command,
    reject_options,
    result_text,
)
from resdeploy.tables import WORST, plural

if TYPE_CHECKING:
    from resdeploy.runtime.camera import CameraReport
    from resdeploy.runtime.model import FilePredictions


@command
@argument("bundle", type=PATH)
@argument("images", type=PATH, nargs=-1)
@option(
    "--camera",
    metavar="SOURCE",
    help="Instead classify the frames of a camera or a video: a number, /dev/video0, a URL or a "
    "file.",
)
@option(
    "--frames",
    type=Integers(1, 1_000_000_000),
    help="With --camera: number of frames.  [default: until Ctrl-C]",
)
@option(
    "--seconds",
    type=FiniteRange(0, LONGEST_SECONDS, above=True),
    help="With --camera: time limit, in seconds.  [default: until Ctrl-C]",
)
@option("--top", type=Integers(1, 100_000), default=5, help="Number of classes to print per image.")
@BACKEND
@PRECISION
@THREADS
@EXACT
def predict(
    bundle: Path, images: tuple[Path, ...], camera: str | None, frames: int | None,
    seconds: float | None, top: int, **settings: Any,
) -> CommandResult:  # fmt: skip
    """Classify IMAGES, or the frames of a camera, with BUNDLE.

    Exit code: 0 all were classified, 1 at least one image could not be decoded.
    """
    from resdeploy.progress import progress_bar
    from resdeploy.runtime.model import load, predict_files

    if bool(images) == bool(camera):
        raise UsageError("give either IMAGES or --camera")
    if camera is None:
        reject_options(("frames", "seconds"), "--frames and --seconds need --camera")
    with load(bundle, progress=progress_bar, **settings) as model:
        if camera is None:
            result = predict_files(model, images, top)
            failed = any(file.error for file in result)
            exit = ExitCode.FAILED if failed else ExitCode.OK
            text = predictions_text(result)
            return CommandResult(result, text, exit, warnings=model.warnings)
        from resdeploy.runtime.camera import watch_camera

        report = watch_camera(model, camera, frames=frames, seconds=seconds, top=top)
    return CommandResult(report, camera_text(report), warnings=model.warnings)


@result_text
def predictions_text(files: Sequence[FilePredictions]) -> str:
    blocks = []
    failed = sum(file.error is not None for file in files)
    for file in files:
        if file.error is not None:  # on stderr
            continue
        width = max(len(prediction.label) for prediction in file.predictions)
        bars = [
            f"  {prediction.label.ljust(width)}  {100 * prediction.probability:5.1f} %  "
            f"{'#' * round(30 * prediction.probability)}".rstrip()
            for prediction in file.predictions
        ]
        note = ": its pixels are all equal, so its prediction means nothing"
        name = f"{file.image}{note if file.single_colour else ''}"
        blocks.append("\n".join([name, *bars]))
    if failed < len(files):
        blocks.append(f"computed by {files[0].artifact} on {files[0].backend}")
    if failed:
        blocks.append(f"{failed} of {plural(len(files), 'image')} could not be decoded")
    return "\n".join(blocks)


@result_text
def camera_text(report: CameraReport) -> str:
    width = max(len(label) for label in report.labels)
    lines = [
        f"  {label.ljust(width)}  {plural(count, 'frame')}"
        for label, count in list(report.labels.items())[:WORST]
    ]
    lost = "" if report.lost is None else f", {report.lost} lost by the camera"
    return "\n".join(
        [
            report.source,
            *lines,
            f"{report.captured} frames in {report.seconds:.1f} s: {report.classified} classified "
            f"({report.frames_per_second:.1f} per second, median {report.p50_ms:.1f} ms), "
            f"{report.dropped} dropped{lost}",
            f"computed by {report.artifact} on {report.backend}",
        ]
    )
