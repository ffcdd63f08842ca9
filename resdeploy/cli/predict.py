"""The command `resdeploy predict`: classify pictures, or the frames of a camera."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from click import UsageError, argument, option

from resdeploy.bundle.quality import short_lines
from resdeploy.cli.options.common import (
    BACKEND,
    EXACT,
    FORCE,
    LONGEST_SECONDS,
    PRECISION,
    THREADS,
    FiniteRange,
    Integers,
    LocalPath,
)
from resdeploy.cli.options.console import (
    PATH,
    CommandResult,
    ExitCode,
    command,
    print_text,
    prints_json,
    reject_options,
    result_text,
)
from resdeploy.tables import WORST, plural

if TYPE_CHECKING:
    from resdeploy.runtime.camera import CameraReport
    from resdeploy.runtime.file_predictions import FilePredictions, PredictionReport
    from resdeploy.runtime.model import Model

logger = logging.getLogger(__name__)


@command
@argument("bundle", type=PATH)
@argument("images", type=LocalPath(str), nargs=-1)
@option(
    "--camera",
    metavar="SOURCE",
    help="Classify the frames of a camera or a video instead of IMAGES: a number, a device such as "
    "/dev/video0, a URL or a file.",
)
@option(
    "--frames",
    type=Integers(1, 1_000_000_000),
    help="With --camera: number of frames to classify.  [default: until Ctrl-C]",
)
@option(
    "--seconds",
    type=FiniteRange(0, LONGEST_SECONDS, above=True),
    help="With --camera: longest duration, in seconds.  [default: until Ctrl-C]",
)
@option(
    "--top", type=Integers(1, 100_000), default=5, help="Number of most likely classes to print."
)
@option("--csv", type=PATH, help="Write the predictions to this CSV file instead of printing them.")
@option(
    "--jsonl",
    type=PATH,
    help="Write the predictions to this file instead of printing them, one JSON object per line.",
)
@FORCE
@BACKEND
@PRECISION
@THREADS
@EXACT
def predict(
    bundle: Path, images: tuple[str, ...], camera: str | None, frames: int | None,
    seconds: float | None, top: int, csv: Path | None, jsonl: Path | None, force: bool,
    **settings: Any,
) -> CommandResult:  # fmt: skip
    """Classify IMAGES, or the frames of a camera, with BUNDLE.

    IMAGES are files, folders, which are searched with all folders in them, and quoted patterns such
    as 'photos/**/*.jpg'. In folders, hidden files and files that are no pictures are skipped. For
    more than about 10,000 files, use --csv or --jsonl instead of --json.

    Exit code: 0 if all images were classified, 1 if one could not be decoded.
    """
    from resdeploy.bundle.bundle import REPORT
    from resdeploy.filesystem import refuse_existing_file
    from resdeploy.progress import progress_bar
    from resdeploy.runtime.model import load

    if bool(images) == bool(camera):
        given = f"; {bundle} was taken for the BUNDLE" if bundle.is_file() else ""
        raise UsageError(f"give either IMAGES or --camera{given}")
    if camera is None:
        reject_options(("frames", "seconds"), "--frames and --seconds need --camera")
    else:
        reject_options(("csv", "jsonl", "force"), "--camera writes no file")
    if csv is not None and jsonl is not None and csv.resolve() == jsonl.resolve():
        raise UsageError("--csv and --jsonl need a file each")
    for output in filter(None, (csv, jsonl)):
        refuse_existing_file(output, force=force)
    with load(bundle, progress=progress_bar, **settings) as model:
        if camera is None:
            return _predict_files(model, images, top, csv, jsonl, bundle / REPORT)
        from resdeploy.runtime.camera import watch_camera

        report = watch_camera(model, camera, frames=frames, seconds=seconds, top=top)
    page = bundle / REPORT
    return CommandResult(report, camera_text(report), warnings=model.warnings, page=page)


def _predict_files(
    model: Model, images: tuple[str, ...], top: int, csv: Path | None, jsonl: Path | None,
    page: Path,
) -> CommandResult:  # fmt: skip
    """Write the predictions to files, or keep them for the document, or else print each at once."""
    from resdeploy.progress import progress_bar, silent
    from resdeploy.runtime.file_predictions import predict_files
    from resdeploy.runtime.prediction_tables import new_csv, new_jsonl

    kept: list[FilePredictions] = []
    outputs: list[Callable[[FilePredictions], object]] = []
    warnings, progress = model.warnings, progress_bar
    with ExitStack() as files:
        if csv is not None:
            outputs.append(files.enter_context(new_csv(csv, min(top, len(model.labels)))))
        if jsonl is not None:
            outputs.append(files.enter_context(new_jsonl(jsonl)))
        if not outputs and prints_json():
            outputs.append(kept.append)
        elif not outputs:
            if warnings:
                print_text("\n".join(short_lines(warnings, page)))
            outputs.append(_print_predictions)
            warnings, progress = (), silent
        report = predict_files(model, images, outputs, top, progress)
    results = None if csv or jsonl else tuple(kept)
    report = replace(report, csv=csv, jsonl=jsonl, results=results)
    exit = ExitCode.FAILED if report.failed else ExitCode.OK
    return CommandResult(report, report_text(report), exit, warnings=warnings, page=page)


def _print_predictions(file: FilePredictions) -> None:
    if file.error is not None:
        logger.error("%s", file.error)
    else:
        print_text(predictions_text(file))


@result_text
def predictions_text(file: FilePredictions) -> str:
    width = max(len(prediction.label) for prediction in file.predictions)
    bars = [
        f"  {prediction.label.ljust(width)}  {100 * prediction.probability:5.1f} %  "
        f"{'#' * round(30 * prediction.probability)}".rstrip()
        for prediction in file.predictions
    ]
    note = ": its pixels are all equal, so its prediction means nothing"
    return "\n".join([f"{file.path}{note if file.single_colour else ''}", *bars])


@result_text
def report_text(report: PredictionReport) -> str:
    total, lines = report.images + report.failed, list[str]()
    if report.images:
        lines.append(
            f"{plural(report.images, 'image')} in {_seconds_text(report.seconds)} "
            f"({report.images_per_second:.1f} images/s), "
            f"computed by {report.artifact} on {report.backend}"
        )
    if report.skipped:
        lines.append(f"{plural(report.skipped, 'file')} skipped: hidden, or no picture")
    lines += [f"wrote {file}" for file in (report.csv, report.jsonl) if file]
    if report.failed:
        lines.append(
            f"{report.failed} of {plural(total, 'image')} could not be classified; "
            f"the first: {report.first_failed}"
        )
    return "\n".join(lines)


def _seconds_text(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


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
