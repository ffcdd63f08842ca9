"""The command `resdeploy verify`: check that a bundle predicts the same as PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from click import argument, option

from resdeploy.bundle.manifest import graph_name, with_use
from resdeploy.bundle.quality import TRAIN_AGAIN, shows_no_learning, warning_lines
from resdeploy.cli.options.common import BACKEND, ISSUER, PRECISION, THREADS, FiniteRange
from resdeploy.cli.options.console import PATH, CommandResult, command, exit_code, result_text
from resdeploy.images.formats import unread_lines
from resdeploy.readable_text import readable
from resdeploy.tables import DROP, joined, plural, signed, table

if TYPE_CHECKING:
    from resdeploy.result_files.verification import ArtifactResult, Verification

LARGEST_DROP = 5.0  # points; to accept more would be no advice


@command
@argument("bundle", type=PATH)
@option(
    "--data",
    type=PATH,
    help="Folder of labelled images on which top-1 accuracy is measured.  [default: golden images "
    "only]",
)
@option(
    "--max-drop",
    type=FiniteRange(0, 100),
    default=1.0,
    help="With --data: largest accepted drop of top-1 accuracy against FP32, in percentage points.",
)
@option(
    "--signer",
    metavar="FILE|IDENTITY",
    help="Refuse the bundle unless it is signed by this PEM file's public key or root "
    "certificate, or by this identity.",
)
@ISSUER
@BACKEND
@PRECISION
@THREADS
def verify(bundle: Path, signer: str | None, issuer: str | None, **settings: Any) -> CommandResult:
    """Verify that BUNDLE computes here what its export computed.

    Without --data the verdict is `reproduced`, never `pass`: the golden images show nothing about
    accuracy. Limits of their SQNR: 60 dB for FP32; 40 dB for FP16, or less if the export measured
    less than 60 dB; for INT8, what the export measured less 3 dB, and at least 3 dB.

    Exit code: 0 if it passed or was reproduced, 1 if it failed, 3 if too few images decide.
    """
    from resdeploy.bundle.signature import make_signer, open_signed
    from resdeploy.progress import progress_bar
    from resdeploy.runtime.verification.verify import verify as run_verify

    opened = open_signed(bundle, make_signer(signer, issuer))
    result = run_verify(opened, progress=progress_bar, **settings)
    text = verification_text(result)
    if result.verdict.value != "fail":
        text += f"\nnext: {next_step(result, readable(quote(str(bundle))))}"
    return CommandResult(result, text, exit_code(result.verdict))


def next_step(result: Verification, bundle: str) -> str:
    """Return the command after a verification that did not fail, and what it must not use yet."""
    if shows_no_learning(result.warnings):
        return TRAIN_AGAIN
    undecided = [line for line in result.results if line.verdict.value == "inconclusive"]
    lossy = any(line.precision.value == "int8" for line in result.results)
    if not undecided and lossy and result.max_drop is None:  # the golden images do not judge it
        judge = f"resdeploy verify {bundle} --data FOLDER, which judges the accuracy on its images"
        return f"{judge}; then resdeploy serve {bundle}"
    if not undecided:
        return f"resdeploy serve {bundle}"
    names = _names(undecided)
    if all(line.is_emulated for line in undecided):
        return (
            f"resdeploy serve {bundle}, which does not use {names} on this machine; before other "
            "machines do, verify with more labelled images"
        )
    wait = f"verify with more labelled images before you use {names}"
    bound = max(line.drop_upper95 or 0.0 for line in undecided)
    if result.max_drop is not None and result.max_drop < bound <= LARGEST_DROP:
        wait += f", or accept a drop of {bound:.2f} points with --max-drop {math.ceil(bound)}"
    # FP32 on one backend is what all others are compared with; it may be undecided on another one.
    baseline = [line for line in result.results if line.verdict.value == "reproduced"]
    if not baseline:
        return wait
    use = f"--backend {baseline[0].backend} --precision fp32"
    return f"{wait}; until then: resdeploy serve {bundle} {use}"


def _names(lines: Sequence[ArtifactResult]) -> str:
    """Return the names of the graphs, each once, with the target of those for one."""
    names = (with_use(graph_name(line.precision, line.encoding), line.encoding) for line in lines)
    return joined([*dict.fromkeys(names)])


@result_text
def verification_text(result: Verification) -> str:
    """Return a table with a row per graph and backend, then warnings, notes and the verdict."""
    from resdeploy.report.accuracy import (
        agreement_cells,
        answered_lines,
        decision_sentence,
        golden_cell,
    )

    with_labels = result.max_drop is not None
    rows = [
        [
            line.backend,
            graph_name(line.precision, line.encoding),
            line.verdict.value,
            *(
                [
                    signed(line.drop or 0.0, 2),
                    signed(line.drop_upper95 or 0.0, 2),  # the last line has the limit
                    f"{line.top1:.2f} %",
                    *agreement_cells(line),
                ]
                if with_labels
                else [f"{line.agreement:.2f} %"]
            ),
            golden_cell(line),
        ]
        for line in result.results
    ]
    labelled = [DROP, "95 % bound", "top-1"] if with_labels else []
    figures = [*labelled, "agreement", *(["SQNR"] if with_labels else []), "SQNR on golden images"]
    lines = [table(["backend", "graph", "verdict", *figures], rows)]
    lines += warning_lines(result.warnings)
    lines += answered_lines(result)
    lines += [
        f"{graph_name(line.precision, line.encoding)} on {line.backend}: the logits of "
        f"{plural(line.different, 'golden image')} differ from those of the export"
        for line in result.results
        if line.different
    ]
    if result.signer:
        lines.append(f"signed by {result.signer}")
    lines += unread_lines(result.unreadable, result.passed_over)
    if result.used_before:
        lines.append(
            f"the export chose INT8 ranges or layers on {plural(result.used_before, 'image')} of "
            "these, so the accuracy of INT8 may be overestimated; use other images"
        )
    verdict, doubts = result.verdict.value, len(result.warnings)
    if verdict in ("fail", "inconclusive"):
        verdict += f" for {_names([r for r in result.results if r.verdict is result.verdict])}"
    rest = ""
    if doubts and verdict == "pass":  # a warning that it answers is not shown
        one = doubts == 1
        rest = f"; the {'warning' if one else f'{doubts} warnings'} above {'is' if one else 'are'} "
        rest += f"about something else: follow {'its hint' if one else 'their hints'}"
    elif doubts:
        verdict += f", with {plural(doubts, 'warning')}"
    if result.max_drop is not None:
        limit = f"a drop of {plural(result.max_drop, 'point')}"
        lines.append(f"verdict: {verdict}, on {result.images:,} images; limit: {limit}{rest}")
    else:
        golden = result.golden
        lines.append(
            f"verdict: {verdict}, compared with {golden.reference_name} on {golden.described}"
        )
    return "\n".join([*lines, decision_sentence(result)])
