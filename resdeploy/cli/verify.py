"""TODO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from resdeploy.bundle.manifest import graph_name
from resdeploy.cli.console import PATH, CommandResult, command, exit_code
from resdeploy.cli.options import BACKEND, PRECISION, THREADS
from resdeploy.tables import plural, table

if TYPE_CHECKING:
    from resdeploy.results.verification import Verification


def verification_text(result: Verification) -> str:
    """A row per artifact, and the verdict."""
    with_data = result.max_drop is not None
    head = ["backend", "graph", "same class", "SQNR"]
    rows = [
        [
            line.backend,
            graph_name(line.precision.value, line.encoding),
            f"{line.agreement:.2f} %",
            f"{line.sqnr_db:.1f} dB",
            *(
                [f"{line.top1:.2f} %", f"{line.drop:+.2f}", f"{line.drop_upper95:+.2f}"]
                if with_data
                else []
            ),
            line.rule.value,
            line.verdict.value,
        ]
        for line in result.results
    ]
    accuracy = ["top-1", "drop", "at most (95 %)"] if with_data else []
    lines = [table([*head, *accuracy, "rule", "verdict"], rows)]
    lines += [
        f"{graph_name(line.precision.value, line.encoding)} on {line.backend}: "
        f"{plural(line.different, 'golden image')} with other logits than at the export"
        for line in result.results
        if line.different
    ]
    if result.unreadable:
        lines.append(f"{result.unreadable} images could not be decoded and were left out")
    if result.used_before:
        lines.append(
            f"{result.used_before} of the images chose INT8's ranges or layers: others are fairer"
        )
    allowed = (
        "" if result.max_drop is None else f", a drop of {plural(result.max_drop, 'point')} allowed"
    )
    lines.append(f"verdict: {result.verdict.value} on {result.images} images{allowed}")
    needed = [line.images_to_decide for line in result.results if line.images_to_decide]
    if needed:
        lines.append(f"about {max(needed):,} images would decide, if answers differ as often")
    return "\n".join(lines)


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--data", type=PATH, help="Labelled folder, for accuracy and a verdict.")
@click.option("--max-drop", type=float, default=1.0, show_default=True, help="Points of accuracy.")
@BACKEND
@PRECISION
@THREADS
@command
def verify(bundle: Path, **settings: Any) -> CommandResult:
    """Check that BUNDLE gives PyTorch's answers on this machine. ExitCode 1: no, 3: undecided."""
    from resdeploy.bundle.bundle import open_bundle
    from resdeploy.progress import progress_bar
    from resdeploy.runtime.verification.verify import verify as run_verify

    result = run_verify(open_bundle(bundle), progress=progress_bar, **settings)
    return CommandResult(result, verification_text(result), exit_code(result.verdict))
