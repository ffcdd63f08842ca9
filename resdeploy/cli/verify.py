"""The command `resdeploy verify`: check that a bundle predicts the same as PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from click import argument, option

from resdeploy.bundle.manifest import graph_name
from resdeploy.cli.console import PATH, CommandResult, command, exit_code
from resdeploy.cli.options import BACKEND, PRECISION, THREADS
from resdeploy.images.formats import passed_over_text
from resdeploy.tables import plural, table

if TYPE_CHECKING:
    from resdeploy.result_files.verification import Verification


@command
@argument("bundle", type=PATH)
@option(
    "--data",
    type=PATH,
    help="Folder of labelled images, to measure top-1 accuracy on.  [default: golden images only]",
)
@option(
    "--max-drop",
    type=float,
    default=1.0,
    help="With --data: largest accepted drop of top-1 accuracy against FP32, in percentage points.",
)
@BACKEND
@PRECISION
@THREADS
def verify(bundle: Path, **settings: Any) -> CommandResult:
    """Check that BUNDLE predicts the same as PyTorch on this machine.

    Exit code: 0 passed, 1 failed, 3 too few images to decide.
    """
    from resdeploy.bundle.bundle import open_bundle
    from resdeploy.progress import progress_bar
    from resdeploy.runtime.verification.verify import verify as run_verify

    result = run_verify(open_bundle(bundle), progress=progress_bar, **settings)
    return CommandResult(result, verification_text(result), exit_code(result.verdict))


def verification_text(result: Verification) -> str:
    """Return a table with a row per graph and backend, then notes and the verdict."""
    with_labels = result.max_drop is not None
    rows = [
        [
            line.backend,
            graph_name(line.precision, line.encoding),
            f"{line.agreement:.2f} %",
            f"{line.sqnr_db:.1f} dB",
            *(
                [f"{line.top1:.2f} %", f"{line.drop:+.2f}", f"{line.drop_upper95:+.2f}"]
                if with_labels
                else []
            ),
            line.rule.value,
            line.verdict.value,
        ]
        for line in result.results
    ]
    labelled = ["top-1", "drop", "95 % bound"] if with_labels else []
    lines = [table(["backend", "graph", "agreement", "SQNR", *labelled, "rule", "verdict"], rows)]
    lines += [
        f"{graph_name(line.precision, line.encoding)} on {line.backend}: the logits of "
        f"{plural(line.different, 'golden image')} differ from those of the export"
        for line in result.results
        if line.different
    ]
    if result.unreadable:
        lines.append(f"skipped {plural(result.unreadable, 'image')} that could not be decoded")
    if result.passed_over:
        lines.append(f"passed over {passed_over_text(result.passed_over)}")
    if result.used_before:
        lines.append(
            f"the export chose INT8 ranges or layers on {plural(result.used_before, 'image')} of "
            "these, so the accuracy of INT8 may be overestimated; use other images"
        )
    limit = (
        "" if result.max_drop is None else f"; limit: a drop of {plural(result.max_drop, 'point')}"
    )
    lines.append(f"verdict: {result.verdict.value} on {result.images} images{limit}")
    if needed := [line.images_to_decide for line in result.results if line.images_to_decide]:
        lines.append(f"about {max(needed):,} images would decide, if predictions change as often")
    return "\n".join(lines)
