"""What a verification found: accuracy with intervals, and what is taken for what."""

from __future__ import annotations

from collections.abc import Sequence

from resdeploy.bundle.manifest import Encoding, graph_name
from resdeploy.pages.blocks import Block, Figure, Matrix, Section, Table, Text
from resdeploy.pages.svg import intervals
from resdeploy.results.verification import ArtifactResult, Verification
from resdeploy.statistics import Verdict, wilson_interval

LARGEST_MATRIX = 25  # classes; more do not fit on a page
PAIRS = 10


def verification_summary(result: Verification) -> str:
    """One sentence: what was held against what, and how it went."""
    failed = [_name(line) for line in result.results if line.verdict is Verdict.FAIL]
    open_ = [_name(line) for line in result.results if line.verdict is Verdict.INCONCLUSIVE]
    images = f"{result.images:,} {'labelled' if result.max_drop is not None else 'golden'} images"
    if failed:
        return f"Not what it was at the export, on {images}: {', '.join(failed)}."
    if open_:
        return f"{images.capitalize()} do not decide about {', '.join(open_)}."
    if result.max_drop is None:
        return f"Every graph gives PyTorch's answers on {images}."
    most = max(line.drop_upper95 or 0.0 for line in result.results)
    return (
        f"No graph is more than {most:.2f} points less accurate than FP32 (95 % confidence, "
        f"{images}); {result.max_drop:g} were allowed."
    )


def verification_section(result: Verification) -> Section:
    """Tables, the plot of drops, and the confusion matrix where labels are known."""
    if result.max_drop is None:
        return Section(title="Answers", blocks=(_answers(result),))
    blocks: list[Block] = [_accuracy(result), _drops(result), _answers(result)]
    if result.used_before:
        blocks.append(
            Text(
                text=f"{result.used_before:,} of the images chose INT8's ranges or layers, which "
                "flatters those graphs."
            )
        )
    if result.unreadable:
        blocks.append(Text(text=f"{result.unreadable:,} images could not be decoded."))
    return Section(title="Accuracy", blocks=(*blocks, *_confusion(result)))


def _accuracy(result: Verification) -> Table:
    rows = []
    for line in result.results:
        assert line.top1 is not None
        assert line.drop is not None
        low, high = wilson_interval(round(line.top1 * result.images / 100), result.images)
        rows.append(
            (
                _graph(line),
                line.backend,
                f"{line.top1:.2f} %",
                f"{low:.2f} to {high:.2f}",
                f"{line.drop:+.2f}",
                f"{line.drop_upper95:+.2f}",
                line.verdict.value,
            )
        )
    return Table(
        caption=f"Accuracy on {result.images:,} labelled images, in percent, with 95 % intervals; "
        "the drop against FP32 is paired, image by image, in points.",
        head=("graph", "backend", "right", "interval", "drop", "at most", "verdict"),
        rows=tuple(rows),
    )


def _drops(result: Verification) -> Figure:
    assert result.max_drop is not None
    rows = []
    for line in result.results:
        least, drop, most = (line.drop_lower95 or 0.0, line.drop or 0.0, line.drop_upper95 or 0.0)
        rows.append((_name(line), least, drop, most, f"{drop:+.2f}, at most {most:+.2f}"))
    described = "; ".join(f"{label}: {figure}" for label, *_, figure in rows)
    return Figure(
        svg=intervals(
            rows,
            axis="points of accuracy lost against FP32",
            description=f"Points of accuracy lost against FP32. {described}",
            marks=((0.0, "none"), (result.max_drop, "allowed")),
        ),
        caption="Accuracy lost against FP32, with bounds that hold at 95 % each.",
    )


def _answers(result: Verification) -> Table:
    rows = tuple(
        (
            _graph(line),
            line.backend,
            f"{line.agreement:.2f} %",
            f"{line.sqnr_db:.1f} dB",
            line.rule.value,
            line.verdict.value,
        )
        for line in result.results
    )
    return Table(
        caption="Answers: images with FP32's most likely class, median signal to noise of the "
        "logits, and what was asked on the golden images.",
        head=("graph", "backend", "same class", "SQNR", "rule", "verdict"),
        rows=rows,
    )


def _confusion(result: Verification) -> list[Block]:
    """Of the last graph in the smallest precision, with FP32's figures beside it."""
    known = [line for line in result.results if line.confusion and line.verdict is not Verdict.FAIL]
    if not known or not result.labels:
        return []
    line = next((one for one in known if one.encoding is Encoding.CPU), known[-1])
    labels, blocks = result.labels, list[Block]()
    if len(labels) <= LARGEST_MATRIX:
        blocks.append(
            Matrix(
                caption=f"What {_graph(line)} takes images for. Rows: what an image shows. "
                "Columns: what it was taken for.",
                labels=labels,
                counts=_counts(line, len(labels)),
            )
        )
    first = {(shown, taken): count for shown, taken, count in known[0].confusion}
    wrong = sorted((one for one in line.confusion if one[0] != one[1]), key=lambda one: -one[2])
    rows = tuple(
        (
            _label(labels, shown),
            _label(labels, taken),
            str(count),
            str(first.get((shown, taken), 0)),
        )
        for shown, taken, count in wrong[:PAIRS]
    )
    if rows:
        blocks.append(
            Table(
                caption="The most frequent mistakes.",
                head=("shows", "taken for", _graph(line), _graph(known[0])),
                rows=rows,
                aside=True,
            )
        )
    return blocks


def _counts(line: ArtifactResult, classes: int) -> tuple[tuple[int, ...], ...]:
    found = {(shown, taken): count for shown, taken, count in line.confusion}
    return tuple(
        tuple(found.get((shown, taken), 0) for taken in range(classes)) for shown in range(classes)
    )


def _label(labels: Sequence[str], index: int) -> str:
    return labels[index] if 0 <= index < len(labels) else str(index)


def _graph(line: ArtifactResult) -> str:
    return graph_name(line.precision, line.encoding)


def _name(line: ArtifactResult) -> str:
    return f"{_graph(line)} on {line.backend}"
