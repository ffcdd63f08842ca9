"""The command `resdeploy compare`: compare two bundles, or two benchmark files."""

from __future__ import annotations

from typing import Any

from click import argument, option

from resdeploy.cli.options.common import (
    BACKEND,
    LONGEST_SECONDS,
    PRECISION,
    THREADS,
    FiniteRange,
    Integers,
    LocalPath,
)
from resdeploy.cli.options.console import PATH, CommandResult, command, exit_code, result_text


@command
@argument("first", type=LocalPath(str))
@argument("second", type=LocalPath(str))
@option(
    "--data", type=PATH, help="Folder of labelled images.  [default: the golden images of FIRST]"
)
@option(
    "--max-drop",
    type=FiniteRange(0, 100),
    default=0.2,
    help="Largest accepted drop of top-1 accuracy, in percentage points.",
)
@option(
    "--max-slowdown",
    type=FiniteRange(0, 1000),
    default=5.0,
    help="Largest accepted increase of latency, in percent.",
)
@BACKEND
@PRECISION
@option("--batch", type=Integers(1, 4096), default=1, help="Number of images in one inference.")
@THREADS
@option(
    "--seconds",
    type=FiniteRange(0, LONGEST_SECONDS),
    default=60.0,
    help="Longest time in which each graph is measured, in seconds; 0: compare accuracy only.",
)
def compare(first: str, second: str, **settings: Any) -> CommandResult:
    """Check that SECOND is as accurate and as fast as FIRST.

    FIRST and SECOND are two bundles, which the command runs unless they are identical, or two
    benchmark files. FILE@DATE selects the documents of a file whose date begins with DATE.

    Exit code: 0 if it passed, 1 if it failed, 3 if the measurements do not decide.
    """
    from resdeploy.progress import progress_bar
    from resdeploy.report.comparison import comparison_text
    from resdeploy.runtime.comparison.compare import CompareConfig
    from resdeploy.runtime.comparison.compare import compare as run_compare

    result = run_compare(first, second, CompareConfig(**settings), progress=progress_bar)
    return CommandResult(result, result_text(comparison_text)(result), exit_code(result.verdict))
