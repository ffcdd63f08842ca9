"""Check of options of an export that contradict each other; it needs neither torch nor onnx."""

from __future__ import annotations

from resdeploy.errors import ExportError


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
