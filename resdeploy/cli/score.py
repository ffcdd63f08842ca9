"""The command `resdeploy score`: classify an archive of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from click import Choice, UsageError, argument, option

from resdeploy.cli.options.common import (
    BACKEND,
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
from resdeploy.tables import plural

if TYPE_CHECKING:
    from resdeploy.result_files.scoring import ScoringReport

SHOWN_ERRORS = 5
RAY_OPTIONS = ("ray_address", "workers", "worker_cpus", "worker_gpus")


@command
@argument("bundle", type=PATH)
@argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@option("-o", "--output", required=True, metavar="FOLDER", help="Folder or URL of the result.")
@option(
    "--engine",
    type=Choice(["local", "ray"]),
    default="local",
    help="local: this process; ray: actors on a cluster of Ray.",
)
@option("--top", type=Integers(1, 100_000), default=5, help="Number of most likely classes.")
@option("--logits", is_flag=True, help="Keep all logits, too.")
@option(
    "--batch",
    type=Integers(1, 4096),
    help="Number of pictures in an inference.  [default: 8 on a CPU, 32 on a GPU]",
)
@option(
    "--shard",
    type=Integers(1, 10_000_000),
    default=10_000,
    help="Largest number of rows in a file of the result.",
)
@option(
    "--format",
    "table_format",
    type=Choice(["parquet", "csv", "jsonl"]),
    default="parquet",
    help="Format of the result.",
)
@option(
    "--on-error",
    type=Choice(["record", "stop"]),
    default="record",
    help="What a picture that cannot be decoded causes. record: a row with the reason; stop: the "
    "end of the run, which can be resumed.",
)
@option("--resume", is_flag=True, help="Complete the result of a run that was stopped.")
@option(
    "--column",
    metavar="NAME",
    help="Column of a table that holds paths, URLs or contents of pictures.  [default: the first "
    "with a usual name, such as path, url or image]",
)
@option(
    "--label-column",
    metavar="NAME",
    help="Column of a table that holds the true classes.  [default: label or class, if its values "
    "are labels of the bundle]",
)
@option("--report", type=PATH, help="Write a page with the result to this HTML file.")
@option("--force", is_flag=True, help="Replace the page of --report if it exists.")
@option("--ray-address", help="Address of a cluster that exists.  [default: one on this machine]")
@option(
    "--workers",
    type=Integers(1, 100_000),
    help="Number of Ray's actors.  [default: as many as the cluster has CPUs for]",
)
@option(
    "--worker-cpus",
    type=Integers(1, 1024),
    default=1,
    help="CPUs of each actor, and threads of its inference.",
)
@option(
    "--worker-gpus", type=FiniteRange(0, 64), default=0, help="GPUs of each actor, such as 0.5."
)
@BACKEND
@PRECISION
@THREADS
def score(
    bundle: Path, sources: tuple[str, ...], output: str, engine: str, top: int, logits: bool,
    batch: int | None, shard: int, table_format: str, on_error: str, resume: bool,
    column: str | None, label_column: str | None, report: Path | None, force: bool,
    ray_address: str | None, workers: int | None, worker_cpus: int, worker_gpus: float,
    threads: int | None, **settings: Any,
) -> CommandResult:  # fmt: skip
    """Classify the pictures of an archive with BUNDLE, and write tables of predictions.

    SOURCE is a folder, which is searched with all folders in it, a picture, a tar file, or a CSV or
    Parquet file with a column of paths, URLs or contents. Each may be a URL that fsspec opens, such
    as s3://bucket/photos. A run that was stopped at any moment is completed by --resume, without a
    row lost or repeated. True classes, from the names of folders or a column, give the accuracy.

    Exit code: 0 if all rows were classified, 1 if one could not be.
    """
    from resdeploy.bundle.bundle import REPORT
    from resdeploy.bundle.quality import short_lines
    from resdeploy.filesystem import refuse_existing_file
    from resdeploy.progress import progress_bar
    from resdeploy.runtime.scoring.engines import RayOptions
    from resdeploy.runtime.scoring.result_files import TableFormat
    from resdeploy.runtime.scoring.score import ScoringOptions, score_sources
    from resdeploy.runtime.scoring.scorer import ScorerOptions
    from resdeploy.runtime.scoring.table_source import ColumnNames

    if engine == "local":
        reject_options(RAY_OPTIONS, "only --engine ray has actors")
    else:
        reject_options(("threads",), "an actor of Ray has as many threads as --worker-cpus")
        threads = worker_cpus
    if force and report is None:
        raise UsageError("--force replaces the page of --report, which is not given")
    if report is not None:
        refuse_existing_file(report, force=force)
    cluster = RayOptions(
        address=ray_address, workers=workers, worker_cpus=worker_cpus, worker_gpus=worker_gpus
    )
    options = ScoringOptions(
        scorer=ScorerOptions(top=top, logits=logits, batch=batch, threads=threads, **settings),
        columns=ColumnNames(picture=column, label=label_column),
        format=TableFormat(table_format),
        shard=shard,
        stop_on_error=on_error == "stop",
        resume=resume,
        ray=cluster if engine == "ray" else None,
    )
    result = score_sources(bundle, sources, output, options, progress_bar)
    text = "\n".join([*short_lines(result.warnings, bundle / REPORT), scoring_text(result)])
    if report is not None:
        from resdeploy.report.scoring import write_scoring_page

        write_scoring_page(report, result)
        text = f"{text}\nreport: {report}"
    return CommandResult(result, text, ExitCode.FAILED if result.failed else ExitCode.OK)


@result_text
def scoring_text(result: ScoringReport) -> str:
    """Return the result of a scoring as text."""
    rate = result.rows_per_second
    lines = [
        f"{plural(result.rows - result.failed, 'row')} of {result.rows:,} classified by "
        f"{', '.join(result.engines)} in {result.seconds:.1f} s"
        + ("" if rate is None else f" ({rate:.1f} rows/s)"),
        f"result: {plural(result.parts, 'file')} in {result.output}",
    ]
    if result.resumed_parts:
        lines.append(f"an earlier run had completed {plural(result.resumed_parts, 'file')} of them")
    if result.skipped:
        lines.append(f"{plural(result.skipped, 'file')} skipped: hidden, or no picture")
    if result.failed:
        lines.append(
            f"{plural(result.failed, 'row')} could not be classified, with the reason in the "
            f"column error; the first: {result.first_failed}"
        )
    if (found := result.accuracy) is not None:
        low, high = found.interval
        lines.append(
            f"top-1 accuracy {found.percent:.2f} % (95 % interval {low:.2f} to {high:.2f} %) on "
            f"{plural(found.rows, 'row')} with a true class; it is too high if the network has "
            "learned some of these pictures"
        )
        errors = [cell for cell in found.confusion if cell[0] != cell[1]]
        lines += [
            f"  true class {result.labels[true]}, predicted class {result.labels[predicted]}: "
            f"{plural(count, 'row')}"
            for true, predicted, count in sorted(errors, key=lambda cell: -cell[2])[:SHOWN_ERRORS]
        ]
    return "\n".join(lines)
