"""The command `resdeploy preprocess`: find the pre-processing that a network was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from click import argument, option

from resdeploy.cli.options.common import FORCE, WEIGHTS, Integers
from resdeploy.cli.options.console import PATH, CommandResult, command, exit_code, result_text
from resdeploy.tables import NONE, WORST, duration_text, plural, signed, table

NEARLY_ALL = 0.99  # of the images: then top-1 accuracy differs by at most one point

if TYPE_CHECKING:
    from resdeploy.result_files.preprocessing_search import CandidateResult, PreprocessingSearch


@command
@argument("checkpoint", type=PATH)
@option(
    "--data",
    type=PATH,
    required=True,
    help="Folder of images like those of the training, best in class folders. Without class "
    "folders, only the statistics of the batch norms are compared, which show less.",
)
@option(
    "-o",
    "--output",
    type=PATH,
    help="File to write for `export --preprocessing FILE`.  [default: no file]",
)
@option(
    "--image-size",
    "sizes",
    type=Integers(8, 1024),
    multiple=True,
    help="Input size to try, in pixels. This option may be repeated.  [default: usual sizes]",
)
@option(
    "--images",
    type=Integers(64, 1_000_000),
    help="Largest number of images.  [default: 512 of 224 pixels, up to 5000 smaller ones]",
)
@option(
    "--labels",
    type=PATH,
    help="Text file with one class name per line.  [default: the names in CHECKPOINT]",
)
@WEIGHTS
@option(
    "--seed", type=Integers(0, 2**63 - 1), default=0, help="Seed of the random choice of images."
)
@FORCE
def preprocess(
    checkpoint: Path, data: Path, output: Path | None, sizes: tuple[int, ...],
    images: int | None, labels: Path | None, weights: str, seed: int, force: bool,
) -> CommandResult:  # fmt: skip
    """Find the pre-processing of CHECKPOINT's training, from images.

    Usual candidates are scored in FP32 on labelled images: mean, standard deviation and range of
    the pixels, RGB or BGR, sizes, crops and interpolation. The command names one of them if top-1
    accuracy (95 % confidence, corrected for the number of candidates) or the batch norms exclude
    every other one.

    Exit code: 0 if it was found, 3 if that is undecided.
    """
    from resdeploy.filesystem import refuse_existing_file
    from resdeploy.images.folder import require_folder
    from resdeploy.json_documents import write_document
    from resdeploy.progress import progress_bar
    from resdeploy.train.checkpoint.file_kind import refuse_missing

    refuse_missing(checkpoint)
    require_folder(data)
    if output is not None:
        refuse_existing_file(output, force=force)
    with progress_bar("loading PyTorch", 0):
        from resdeploy.export.inputs import read_source
        from resdeploy.export.preprocessing_search.search import find_preprocessing
        from resdeploy.train.checkpoint.contents import Weights

    source = read_source(checkpoint, labels=labels, weights=Weights(weights))
    result = find_preprocessing(
        source.checkpoint, source.labels, data, sizes=sizes, images=images,
        stated=source.stated_preprocessing, seed=seed, progress=progress_bar,
    )  # fmt: skip
    written = output if result.preprocessing is not None else None
    if written is not None:
        write_document(written, {"preprocessing": result.preprocessing})
    return CommandResult(result, search_text(result, written), exit_code(result.verdict))


@result_text
def search_text(result: PreprocessingSearch, written: Path | None = None) -> str:
    """Return a table with a row per candidate, the verdict and the options of `export`."""
    from resdeploy.export.preprocessing_search.candidates import export_options

    shown = result.candidates[:WORST]
    head = ["candidate", "images", "top-1", "95 % interval", "difference, points", "interval"]
    columns = slice(None) if result.labelled else slice(0, 2)
    rows = [[*_cells(row)[columns], *_evidence(row)] for row in shown]
    lines = [table([*head[columns], "divergence, nats", "excluded by"], rows)]
    if more := len(result.candidates) - len(shown):
        lines.append(f"{plural(more, 'other candidate')} not shown; --json lists all")
    if result.same_pixels:
        lines.append(
            f"the same pixels on these images as the first: {'; '.join(result.same_pixels)}"
        )
    lines.append(f"the search took {duration_text(result.seconds)}")
    lines.append(verdict_sentence(result))
    best = export_options(result.left[0].preprocessing)
    order = "most accurate" if result.labelled else "nearest"
    first = "" if result.preprocessing is not None else f" for the {order} of these candidates"
    lines.append(f"options of export{first}: {best}")
    if written is not None:
        lines.append(f"wrote {written} for export --preprocessing {written}")
    return "\n".join(lines)


def verdict_sentence(result: PreprocessingSearch) -> str:
    """Return a sentence about the candidate that was found, or about what is open and why."""
    from resdeploy.export.preprocessing_search.candidates import describe_common

    best, *others = result.left
    how = "top-1 accuracy and the batch norms" if result.labelled else "the batch norms"
    on = f"on {plural(result.images, 'image')}"
    if not others:
        return f"verdict: found, by {how} {on}: {best.name}"
    common, unsettled = describe_common([row.preprocessing for row in result.left])
    group = f"{len(result.left)} candidates are left {on}; {how} cannot tell them apart"
    group += f"; they predict the same class for {result.same_predictions} of {result.images}"
    if result.same_predictions >= NEARLY_ALL * result.images:
        group += ", so that any of them may be used for pictures like these"
    if result.random_crops:
        group += "; the training took random crops, which hide the crop to use: state "
        group += "--crop-fraction, or choose by accuracy"
        group += "" if result.labelled else ", with labelled images"
    elif not result.labelled:
        group += "; use labelled images"
    elif result.images_to_decide is not None:
        group += f"; about {result.images_to_decide:,} images would decide"
    else:
        group += "; more images may not help"
    found = f"; all else is found: {common}" if common else ""
    return f"verdict: undecided: {unsettled}{found}\n{group}"


def _cells(row: CandidateResult) -> list[str]:
    cells = [row.name, f"{row.images}"]
    if row.top1 is not None and row.top1_interval:
        cells += [f"{row.top1:.1f} %", "{:.1f} to {:.1f}".format(*row.top1_interval)]
    if row.difference is not None and row.difference_interval:
        low, high = row.difference_interval
        return [*cells, signed(row.difference, 1), f"{signed(low, 1)} to {signed(high, 1)}"]
    return [*cells, NONE, NONE]


def _evidence(row: CandidateResult) -> list[str]:
    divergence = NONE if row.divergence is None else f"{row.divergence:.2g}"
    return [divergence, row.excluded_by or NONE]
