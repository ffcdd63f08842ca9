"""Page about a scoring: its counts, and the accuracy if the true classes are known."""

from __future__ import annotations

from pathlib import Path

from resdeploy.bundle.quality import grouped_by_hint
from resdeploy.filesystem import write_file
from resdeploy.pages.blocks import Block, Facts, Page, Section
from resdeploy.pages.template import to_html
from resdeploy.report.confusion import confusion_blocks
from resdeploy.report.origin import made_text, origin_section, subject_text
from resdeploy.result_files.scoring import ScoringReport
from resdeploy.tables import plural


def write_scoring_page(path: Path, result: ScoringReport) -> None:
    """Write the page of a scoring as HTML.

    Raises:
        MissingDependencyError: Jinja2 is not installed.
        OutputError: The file cannot be written.
    """
    write_file(path, to_html(scoring_page(result)))


def scoring_page(result: ScoringReport) -> Page:
    """Return the page of a scoring."""
    environment, found, rate = result.environment, result.accuracy, result.rows_per_second
    classified = plural(result.rows - result.failed, "row")
    summary = [f"{classified} of {result.rows:,} classified by {', '.join(result.engines)}."]
    if found is not None:
        low, high = found.interval
        summary.append(
            f"Top-1 accuracy {found.percent:.2f} %, with a 95 % confidence interval from "
            f"{low:.2f} to {high:.2f} % (Wilson 1927), on {plural(found.rows, 'row')} with a true "
            "class. It is too high if the network has learned some of these pictures."
        )
    if result.failed:
        summary.append(
            f"{plural(result.failed, 'row')} could not be classified; the first is "
            f"{result.first_failed}. The column error has the reasons."
        )
    facts = (
        ("result", f"{plural(result.parts, 'file')} in {Path(result.output).name}"),
        *(
            (f"rows classified by {engine}", f"{rows:,}")
            for engine, rows in result.engines.items()
            if len(result.engines) > 1
        ),
        *([("rows per second", f"{rate:.1f}")] if rate is not None else []),
        *(
            [("files skipped", f"{result.skipped:,}, because they are hidden or no pictures")]
            if result.skipped
            else []
        ),
        ("bundle's manifest", f"sha256 {result.bundle_sha256}"),
    )
    sections = [Section(title="Rows", blocks=(Facts(facts=facts),))]
    if found is not None:
        blocks: list[Block] = confusion_blocks(
            result.labels, {"images": found.confusion}, "all rows with a true class"
        )
        sections.append(Section(title="Accuracy", blocks=tuple(blocks)))
    sections.append(origin_section([("Scoring", environment)]))
    return Page(
        title="Scoring",
        lead=f"{subject_text(environment)}, {made_text(environment)}",
        warnings=tuple(grouped_by_hint(result.warnings)),
        summary=tuple(summary),
        sections=tuple(sections),
    )
