"""Check of options of an export that contradict each other; it needs neither torch nor onnx."""

from __future__ import annotations

from pathlib import Path

from resdeploy.errors import CalibrationError, ExportError
from resdeploy.train.checkpoint.file_kind import (
    AN_ONNX_GRAPH,
    describe_foreign_file,
    refuse_foreign_file,
    refuse_missing,
)
from resdeploy.train.checkpoint.run import read_run, recorded_run

OTHER_SOURCES = (".onnx", ".pt2", ".json")  # a graph, a program, or an index of several files


def check_int8_options(
    *,
    int8: bool,
    dla: bool,
    min_agreement: float | None,
    max_drop: float | None,
    target_ms: float | None,
) -> None:
    """Check that the options of the INT8 graphs go together.

    Raises:
        ExportError: An option needs `--int8`, or a target excludes another one.
    """
    needs_int8 = {
        "--min-agreement": min_agreement is not None,
        "--max-drop": max_drop is not None,
        "--target-ms": target_ms is not None,
        "--dla": dla,
    }
    if needs_int8["--target-ms"] and (needs_int8["--min-agreement"] or needs_int8["--max-drop"]):
        raise ExportError(
            "--target-ms cannot be combined with --min-agreement or --max-drop",
            "leave out --target-ms or the other two",
        )
    for option, used in needs_int8.items():
        if used and not int8:
            raise ExportError(f"{option} applies only to INT8 graphs", "add --int8")


def check_source(source: Path) -> None:
    """Check the kind of a file or folder; the checks of `load_network` are more complete.

    Raises:
        CheckpointError: It is missing, or neither a run nor a file of weights, a graph or a
            program.
    """
    refuse_missing(source)
    if source.is_dir() and not (source / "config.json").exists():  # of Hugging Face
        read_run(source)
    elif source.is_file() and source.suffix.lower() not in OTHER_SOURCES:
        refuse_foreign_file(source)


def check_calibration_source(source: Path, calibration_data: Path | None) -> None:
    """Check that `source` is a run, which names images, unless there is a folder of them.

    What is no network is refused later, with a better reason.

    Raises:
        CalibrationError: No images are known for INT8.
    """
    if calibration_data is not None or not source.is_file() or recorded_run(source) is not None:
        return
    if describe_foreign_file(source) in (None, AN_ONNX_GRAPH):
        raise no_calibration_images()


def no_calibration_images() -> CalibrationError:
    return CalibrationError(
        "INT8 needs calibration images, and none are known for this checkpoint",
        "name a folder of typical images with --calibration-data",
    )
